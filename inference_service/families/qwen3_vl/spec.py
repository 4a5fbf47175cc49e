"""Qwen3-VL: reads its configuration and lists the tensors of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

from inference_service.families.config_file import Section, SpecError
from inference_service.families.family import TensorEntry
from inference_service.families.qwen_common.config import (
    QwenVisionSpec,
    expect_rgb_and_axial_rope,
    read_model,
    vision_section,
)
from inference_service.families.qwen_common.decoder import read_decoder, read_rope, text_section
from inference_service.families.qwen_common.processors import VideoDefaults
from inference_service.families.qwen_common.tensors import (
    language_entries,
    patch_embed_entry,
    stored_tensors,
    vision_entry,
    with_bias,
)
from inference_service.model_spec import ModelSpec, VideoPolicy


NAME = "qwen3_vl"
VIDEO = VideoDefaults(
    policy=VideoPolicy(min_pixels=128 * 32 * 32, max_pixels=768 * 32 * 32, timestamps=True),
    root_limits=False,
)
"""As transformers' `Qwen3VLVideoProcessor`."""
VISION: Mapping[str, Any] = MappingProxyType(
    {
        "depth": 27,
        "hidden_size": 1152,
        "hidden_act": "gelu_pytorch_tanh",
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 3584,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    }
)
"""The defaults of the vision tower."""
TEXT: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "rope_theta": 5_000_000.0,
    }
)
"""The defaults of the language model."""
SECTIONS = (24, 20, 20)
"""The default of `mrope_section`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3VisionSpec(QwenVisionSpec):
    """Settings of the Qwen3-VL vision tower.

    Attributes:
        position_table_side: The learned positions are a square table of this side, interpolated to each image.
        deepstack_layers: Blocks, ascending, from which features go to the first decoder layers (arXiv 2406.04334).
    """

    position_table_side: int
    deepstack_layers: tuple[int, ...]


def read(model_dir: Path, config: Section) -> ModelSpec:
    """See `Family.read`."""
    vision = _read_vision(vision_section(config, VISION))
    config.section(
        "text_config"
    )  # required: these models were never stored with their settings at top level
    text = text_section(config, TEXT)
    bias = text.flag("attention_bias", default=False)
    stored = stored_tensors(model_dir)
    decoder = read_decoder(
        config,
        text,
        stored,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        rope=read_rope(text, SECTIONS, interleaved=True),
        deepstack_levels=len(vision.deepstack_layers),
    )
    if decoder.deepstack_levels > decoder.num_layers:
        raise SpecError("config.json: more deepstack levels than decoder layers")
    return read_model(
        model_dir,
        config,
        text,
        family=NAME,
        decoder=decoder,
        vision=vision,
        video=VIDEO,
        stored=stored,
    )


def _read_vision(section: Section) -> Qwen3VisionSpec:
    section.expect("hidden_act", "gelu_pytorch_tanh")
    expect_rgb_and_axial_rope(section)
    num_positions = section.integer("num_position_embeddings")
    vision = Qwen3VisionSpec(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("depth"),
        num_heads=section.integer("num_heads"),
        in_channels=3,
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        merge_size=section.integer("spatial_merge_size"),
        output_size=section.integer("out_hidden_size"),
        position_table_side=math.isqrt(num_positions),
        deepstack_layers=section.integers("deepstack_visual_indexes"),
    )
    levels = vision.deepstack_layers
    if vision.position_table_side**2 != num_positions:
        raise SpecError(f"{section.where}: num_position_embeddings must be a square number")
    if list(levels) != sorted(set(levels)) or any(i >= vision.num_layers for i in levels):
        raise SpecError(
            f"{section.where}: deepstack_visual_indexes must be ascending and less than depth"
        )
    return vision


def _vision_entries(vision: Qwen3VisionSpec) -> Iterator[TensorEntry]:
    width, inner = vision.hidden_size, vision.intermediate_size
    block = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.linear_fc1": (inner, width),
        "mlp.linear_fc2": (width, inner),
    }
    yield patch_embed_entry(vision)
    yield vision_entry("patch_embed.proj.bias", (width,))
    yield vision_entry("pos_embed.weight", (vision.position_table_side**2, width))
    for i in range(vision.num_layers):
        for name, shape in block.items():
            yield from with_bias(f"blocks.{i}.{name}", shape)
    yield from _merger_entries("merger", vision, norm_size=width)
    for i in range(len(vision.deepstack_layers)):
        yield from _merger_entries(
            f"deepstack_merger_list.{i}", vision, norm_size=vision.merged_size
        )


def _merger_entries(name: str, vision: Qwen3VisionSpec, *, norm_size: int) -> Iterator[TensorEntry]:
    merged = vision.merged_size
    yield from with_bias(f"{name}.norm", (norm_size,), "adapter")
    yield from with_bias(f"{name}.linear_fc1", (merged, merged), "adapter")
    yield from with_bias(f"{name}.linear_fc2", (vision.output_size, merged), "adapter")


def tensors(spec: ModelSpec) -> Iterator[TensorEntry]:
    """See `Family.tensors`."""
    if not isinstance(spec.vision, Qwen3VisionSpec):
        raise TypeError(f"{type(spec.vision).__name__} does not belong to {NAME}")
    yield from _vision_entries(spec.vision)
    yield from language_entries(spec.decoder)
