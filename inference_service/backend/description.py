"""Describes the served model from its files, the operator's limits and the loaded engine."""

from __future__ import annotations

from typing import Final

from inference_service.backend.base import (
    CoordinateConvention,
    ImageLimits,
    MemoryNeed,
    Modality,
    ModelDescription,
)
from inference_service.backend.served_model import ServedModel
from inference_service.engine_protocol.messages import EngineReady
from inference_service.families.footprint import footprint
from inference_service.media.policy import FetchPolicy
from inference_service.model_spec import BoxNotation, ModelSpec, ToolNotation
from inference_service.settings import ServiceSettings


_CONVENTIONS: Final = {
    BoxNotation.NONE: CoordinateConvention.NONE,
    BoxNotation.REF_BOX: CoordinateConvention.PER_MILLE,
    BoxNotation.OBJECT_REF: CoordinateConvention.PER_MILLE,
    BoxNotation.JSON_PIXELS: CoordinateConvention.PROCESSED_PIXELS,
    BoxNotation.JSON_PER_MILLE: CoordinateConvention.PER_MILLE,
}


def describe(
    model: ServedModel, settings: ServiceSettings, ready: EngineReady | None
) -> ModelDescription:
    """Describes a model.

    Args:
        model: Its files.
        settings: The operator's limits.
        ready: The loaded engine; None = not loaded yet, then the values of the model's files are used.
    """
    spec = model.spec
    size = footprint(spec, ready.dtype if ready else spec.checkpoint_dtype)
    window = ready.max_model_len if ready else settings.max_model_len
    cache_tokens = ready.kv_pages_total * ready.kv_page_tokens if ready else 0
    video = () if spec.video is None else (Modality.VIDEO,)
    return ModelDescription(
        names=model.names,
        family=size.family,
        created=model.created,
        modalities=(Modality.TEXT, Modality.IMAGE, *video),
        max_context_tokens=window or size.window_tokens,
        image_limits=_image_limits(spec, settings),
        coordinate_convention=_CONVENTIONS[model.box_notation],
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


def _image_limits(spec: ModelSpec, settings: ServiceSettings) -> ImageLimits:
    policy = spec.image_policy
    return ImageLimits(
        max_images=min(settings.max_images, policy.max_images or settings.max_images),
        pixel_step=policy.pixel_step,
        min_pixels=policy.min_pixels,
        max_pixels=policy.max_pixels,
        max_decoded_pixels=settings.max_image_pixels,
        exif_transposed=policy.exif_transpose,
    )


def _features(model: ServedModel) -> tuple[str, ...]:
    """Supported features besides text completion."""
    chat = model.prompts.abilities
    return (
        "logprobs",
        "prompt_logprobs",
        *("json_object", "json_schema", "regex", "choices", "grammar"),
        *(("chat", "continue_final_message") if model.spec.is_chat else ()),
        *(("tools",) if chat.tools is not ToolNotation.NONE else ()),
        *(("reasoning",) if chat.reasoning else ()),
        *(("grounding",) if model.box_notation is not BoxNotation.NONE else ()),
        *(("decisions",) if model.decisions is not None else ()),
    )
