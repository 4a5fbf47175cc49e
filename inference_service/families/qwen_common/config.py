"""Reads the common configuration of Qwen2-VL and its successors.

transformers 4 wrote only the settings that differ from the defaults of its classes, so the families list these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from inference_service.families.config_file import Section, SpecError, read_dtype, read_eos
from inference_service.families.qwen_common.processors import (
    VideoDefaults,
    read_image_policy,
    read_video_policy,
)
from inference_service.families.weight_files import StoredHeader
from inference_service.model_spec import DecoderSpec, ModelSpec


VISION_ROPE_THETA = 10_000.0
TOKEN_IDS: Mapping[str, Any] = MappingProxyType(
    {
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
    }
)
"""The defaults of all families."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVisionSpec:
    """The common settings of the vision towers.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Blocks.
        num_heads: Attention heads.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Frames of a patch.
        merge_size: Patches per side that become one token.
        output_size: Width of an image token: the decoder's hidden size.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    output_size: int

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x frames x side x side."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of the concatenated patches of one token."""
        return self.hidden_size * self.merge_size**2


def expect_rgb_and_axial_rope(section: Section) -> None:
    """Raises for a vision tower with other input than RGB or other rotary positions."""
    section.expect("in_channels", 3)
    section.expect("in_chans", 3)  # the key in the published Qwen2-VL and Qwen2.5-VL
    if "rope_parameters" in section:  # written since transformers 5
        section.section("rope_parameters").expect("rope_type", "axial")
        section.section("rope_parameters").expect("rope_theta", VISION_ROPE_THETA)


def vision_section(config: Section, defaults: Mapping[str, Any]) -> Section:
    """The settings of the vision tower."""
    return config.section("vision_config", {}).with_defaults(defaults)


def read_model(
    model_dir: Path,
    config: Section,
    text: Section,
    *,
    family: str,
    decoder: DecoderSpec,
    vision: QwenVisionSpec,
    video: VideoDefaults,
    stored: Mapping[str, StoredHeader] | None,
) -> ModelSpec:
    """Reads the rest of the specification, given decoder and vision tower.

    Args:
        model_dir: The model's directory.
        config: config.json.
        text: The language model's settings in it.
        family: Name of the family.
        decoder: The language model.
        vision: The vision tower.
        video: How the family prepares videos.
        stored: The tensors of the checkpoint; None = unknown.

    Raises:
        SpecError: A file is missing or invalid, or decoder and tower do not match.
    """
    where = f"{config.where}: vision_config"
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise SpecError(f"{where}: hidden_size / num_heads must be a multiple of 4")
    if vision.output_size != decoder.hidden_size:
        raise SpecError(f"{where}: out_hidden_size must be the decoder's hidden_size")
    patches = {
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    images = read_image_policy(model_dir, patches, family)
    ids = config.with_defaults(TOKEN_IDS)
    return ModelSpec(
        family=family,
        decoder=decoder,
        vision=vision,
        image_policy=images,
        image_token_id=_token_id(ids, "image_token_id", decoder),
        video_token_id=_token_id(ids, "video_token_id", decoder),
        vision_start_token_id=_token_id(ids, "vision_start_token_id", decoder),
        vision_end_token_id=_token_id(ids, "vision_end_token_id", decoder),
        max_position_embeddings=text.integer("max_position_embeddings"),
        checkpoint_dtype=read_dtype(config, text, [one.dtype for one in (stored or {}).values()]),
        eos_token_ids=read_eos(model_dir, config, text),
        video=read_video_policy(model_dir, images, patches, video),
    )


def _token_id(config: Section, key: str, decoder: DecoderSpec) -> int:
    token_id = config.integer(key, minimum=0)
    if token_id >= decoder.vocab_size:
        raise SpecError(
            f"{config.where}: {key} is {token_id}, but must be less than vocab_size {decoder.vocab_size}"
        )
    return token_id
