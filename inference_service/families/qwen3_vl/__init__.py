"""Qwen3-VL (dense)."""

from __future__ import annotations

from inference_service.families.family import Family
from inference_service.families.qwen3_vl.spec import NAME, read, tensors
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
    boxes=BoxNotation.JSON_PER_MILLE,
    refused_relatives={
        "qwen3_vl_moe": "Qwen3-VL mixture-of-experts models are not supported, only dense models are"
    },
)
