"""Describes the served model from its files, the operator's limits and the loaded engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from inference_service.backend.base import (
    CoordinateConvention,
    ImageLimits,
    MemoryNeed,
    Modality,
    ModelDescription,
)
from inference_service.engine_protocol.messages import EngineReady
from inference_service.families.footprint import Footprint
from inference_service.media.policy import FetchPolicy
from inference_service.model_spec import BoxNotation, ImagePolicy, ToolNotation
from inference_service.settings import ServiceSettings
from inference_service.text.prompt import ChatAbilities


_CONVENTIONS: Final = {
    BoxNotation.NONE: CoordinateConvention.NONE,
    BoxNotation.REF_BOX: CoordinateConvention.PER_MILLE,
    BoxNotation.OBJECT_REF: CoordinateConvention.PER_MILLE,
    BoxNotation.JSON_PIXELS: CoordinateConvention.PROCESSED_PIXELS,
    BoxNotation.JSON_PER_MILLE: CoordinateConvention.PER_MILLE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What the files of a model tell about it.

    Attributes:
        names: Served names, the canonical one first.
        created: Unix time in seconds at which the front loaded it.
        revision: A digest that changes with its files.
        footprint: What it needs.
        image_policy: How images are prepared.
        has_videos: Prompts may have videos.
        is_chat: It supports conversations.
        abilities: What its chat format has besides text and images.
        boxes: How its answers write bounding boxes.
        decides: It can decide.
        remarks: Further features, such as what computes it.
    """

    names: tuple[str, ...]
    created: int
    revision: str
    footprint: Footprint
    image_policy: ImagePolicy
    has_videos: bool
    is_chat: bool
    abilities: ChatAbilities
    boxes: BoxNotation
    decides: bool
    remarks: tuple[str, ...] = ()


def describe(
    model: Described, settings: ServiceSettings, ready: EngineReady | None
) -> ModelDescription:
    """Describes a model.

    Args:
        model: What its files tell.
        settings: The operator's limits.
        ready: The loaded engine; None = not loaded yet, then the values of the model's files are used.
    """
    size = model.footprint
    window = ready.max_model_len if ready else settings.max_model_len
    cache_tokens = ready.kv_pages_total * ready.kv_page_tokens if ready else 0
    video = (Modality.VIDEO,) if model.has_videos else ()
    return ModelDescription(
        names=model.names,
        family=size.family,
        created=model.created,
        modalities=(Modality.TEXT, Modality.IMAGE, *video),
        max_context_tokens=window or size.window_tokens,
        image_limits=_image_limits(model.image_policy, settings),
        coordinate_convention=_CONVENTIONS[model.boxes],
        url_schemes=tuple(FetchPolicy.from_settings(settings).url_schemes),
        features=_features(model),
        # A fine-tuned head makes a model larger than its configuration says.
        parts=ready.parts if ready else size.parts,
        memory=MemoryNeed(
            weight_bytes=ready.weight_bytes if ready else size.weight_bytes,
            kv_bytes_per_token=size.kv_bytes_per_token,
            kv_cache_bytes=cache_tokens * size.kv_bytes_per_token,
        ),
        revision=model.revision,
    )


def _image_limits(policy: ImagePolicy, settings: ServiceSettings) -> ImageLimits:
    return ImageLimits(
        max_images=min(settings.max_images, policy.max_images or settings.max_images),
        pixel_step=policy.pixel_step,
        min_pixels=policy.min_pixels,
        max_pixels=policy.max_pixels,
        max_decoded_pixels=settings.max_image_pixels,
        exif_transposed=policy.exif_transpose,
    )


def _features(model: Described) -> tuple[str, ...]:
    """Supported features besides text completion."""
    chat = model.abilities
    return (
        "logprobs",
        "prompt_logprobs",
        *("json_object", "json_schema", "regex", "choices", "grammar"),
        *(("chat", "continue_final_message") if model.is_chat else ()),
        *(("tools",) if chat.tools is not ToolNotation.NONE else ()),
        *(("reasoning",) if chat.reasoning else ()),
        *(("thinking_switch",) if chat.thinking_switch else ()),
        *(("grounding",) if model.boxes is not BoxNotation.NONE else ()),
        *(("decisions",) if model.decides else ()),
        *model.remarks,
    )
