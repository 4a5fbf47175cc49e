"""Qwen2-VL: reads its configuration and lists the tensors of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    with_bias,
)
from inference_service.model_spec import ModelSpec


NAME = "qwen2_vl"
VISION: Mapping[str, Any] = MappingProxyType(
    {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 3584,
        "hidden_act": "quick_gelu",
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
)
"""The defaults of the vision tower."""


def read(model_dir: Path, config: Section) -> ModelSpec:
    """See `Family.read`."""
    section, text = vision_section(config, VISION), text_section(config, QWEN2_TEXT)
    section.expect("hidden_act", "quick_gelu")
    expect_rgb_and_axial_rope(section)
    width = section.integer("embed_dim")
    inner = width * section.number("mlp_ratio")
    if not inner.is_integer():
        raise SpecError(f"{section.where}: embed_dim * mlp_ratio must be an integer")
    vision = QwenVisionSpec(
        hidden_size=width,
        intermediate_size=int(inner),
        num_layers=section.integer("depth"),
        num_heads=section.integer("num_heads"),
        in_channels=3,
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        merge_size=section.integer("spatial_merge_size"),
        output_size=section.integer("hidden_size"),
    )
    stored = stored_tensors(model_dir)
    return read_model(
        model_dir,
        config,
        text,
        family=NAME,
        decoder=read_qwen2_decoder(config, text, stored),
        vision=vision,
        video=QWEN2_VIDEO,
        stored=stored,
    )


def _vision_entries(vision: QwenVisionSpec) -> Iterator[TensorEntry]:
    width, inner = vision.hidden_size, vision.intermediate_size
    yield patch_embed_entry(vision)
    for i in range(vision.num_layers):
        for name, shape in {
            "norm1": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "norm2": (width,),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
        }.items():
            yield from with_bias(f"blocks.{i}.{name}", shape)
    yield from with_bias("merger.ln_q", (width,), "adapter", ours="merger.norm")
    yield from merger_entries(vision)


def tensors(spec: ModelSpec) -> Iterator[TensorEntry]:
    """See `Family.tensors`."""
    if not isinstance(spec.vision, QwenVisionSpec):
        raise TypeError(f"{type(spec.vision).__name__} does not belong to {NAME}")
    yield from _vision_entries(spec.vision)
    yield from language_entries(spec.decoder)
