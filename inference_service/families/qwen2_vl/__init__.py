"""Qwen2-VL."""

from __future__ import annotations

from inference_service.families.family import Family
from inference_service.families.qwen2_vl.spec import NAME, read, tensors
from inference_service.families.qwen_common.positions import mrope_positions
from inference_service.families.qwen_common.tensors import current_name
from inference_service.model_spec import BoxNotation


FAMILY = Family(
    name=NAME,
    model_type=NAME,
    package=__name__,
    read=read,
    tensors=tensors,
    positions=mrope_positions,
    current_name=current_name,
    boxes=BoxNotation.OBJECT_REF,
)
