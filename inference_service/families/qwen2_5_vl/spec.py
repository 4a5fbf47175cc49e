"""Qwen2.5-VL: reads its configuration and lists the tensors of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
from inference_service.families.qwen_common.decoder import (
    QWEN2_TEXT,
    read_qwen2_decoder,
    text_section,
)
from inference_service.families.qwen_common.processors import QWEN2_VIDEO
from inference_service.families.qwen_common.tensors import (
    language_entries,
    merger_entries,
    patch_embed_entry,
    stored_tensors,
    vision_entry,
    with_bias,
)
from inference_service.model_spec import ModelSpec


NAME = "qwen2_5_vl"
VISION: Mapping[str, Any] = MappingProxyType(
    {
        "depth": 32,
        "hidden_size": 3584,
        "hidden_act": "silu",
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 4,
        "window_size": 112,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
)
"""The defaults of the vision tower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen25VisionSpec(QwenVisionSpec):
    """Settings of the Qwen2.5-VL vision tower.

    Attributes:
        window_size: Side in pixels of the square attention windows.
        full_attention_layers: Blocks with attention over the whole frame instead.
    """

    window_size: int
    full_attention_layers: tuple[int, ...]


def read(model_dir: Path, config: Section) -> ModelSpec:
    """See `Family.read`."""
    section, text = vision_section(config, VISION), text_section(config, QWEN2_TEXT)
    tokens_per_second = section.number("tokens_per_second")
    stored = stored_tensors(model_dir)
    return read_model(
        model_dir,
        config,
        text,
        family=NAME,
        decoder=read_qwen2_decoder(config, text, stored),
        vision=_read_vision(section),
        video=replace(
            QWEN2_VIDEO, policy=replace(QWEN2_VIDEO.policy, tokens_per_second=tokens_per_second)
        ),
        stored=stored,
    )


def _read_vision(section: Section) -> Qwen25VisionSpec:
    section.expect("hidden_act", "silu")
    expect_rgb_and_axial_rope(section)
    vision = Qwen25VisionSpec(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("depth"),
        num_heads=section.integer("num_heads"),
        in_channels=3,
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        merge_size=section.integer("spatial_merge_size"),
        output_size=section.integer("out_hidden_size"),
        window_size=section.integer("window_size"),
        full_attention_layers=section.integers("fullatt_block_indexes"),
    )
    if vision.window_size < vision.patch_size * vision.merge_size:
        raise SpecError(
            f"{section.where}: window_size must be at least patch_size * spatial_merge_size"
        )
    if any(i >= vision.num_layers for i in vision.full_attention_layers):
        raise SpecError(f"{section.where}: fullatt_block_indexes must be less than depth")
    return vision


def _vision_entries(vision: Qwen25VisionSpec) -> Iterator[TensorEntry]:
    width, inner = vision.hidden_size, vision.intermediate_size
    yield patch_embed_entry(vision)
    for i in range(vision.num_layers):
        block = f"blocks.{i}"
        yield vision_entry(f"{block}.norm1.weight", (width,))
        yield from with_bias(f"{block}.attn.qkv", (3 * width, width))
        yield from with_bias(f"{block}.attn.proj", (width, width))
        yield vision_entry(f"{block}.norm2.weight", (width,))
        for name, row in (("gate_proj", 0), ("up_proj", inner)):
            fused = f"{block}.mlp.gate_up_proj"
            yield from with_bias(f"{block}.mlp.{name}", (inner, width), ours=fused, row=row)
        yield from with_bias(f"{block}.mlp.down_proj", (width, inner))
    yield vision_entry("merger.ln_q.weight", (width,), "adapter", ours="merger.norm.weight")
    yield from merger_entries(vision)


def tensors(spec: ModelSpec) -> Iterator[TensorEntry]:
    """See `Family.tensors`."""
    if not isinstance(spec.vision, Qwen25VisionSpec):
        raise TypeError(f"{type(spec.vision).__name__} does not belong to {NAME}")
    yield from _vision_entries(spec.vision)
    yield from language_entries(spec.decoder)
