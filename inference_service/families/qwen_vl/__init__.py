"""Qwen-VL and Qwen-VL-Chat (2023)."""

from __future__ import annotations

from inference_service.families.family import Family
from inference_service.families.qwen_vl.positions import sequential_positions
from inference_service.families.qwen_vl.spec import NAME, read, tensors
from inference_service.model_spec import BoxNotation


FAMILY = Family(
    name=NAME,
    model_type="qwen",
    package=__name__,
    read=read,
    tensors=tensors,
    positions=sequential_positions,
    boxes=BoxNotation.REF_BOX,
    pickled_weights=True,
    supports_history_window=True,
    # The tutorial's GB must be GiB: the weights alone are 19.31 GB.
    memory_remarks={"float16": "the Qwen-VL tutorial states 18.74 GB (GiB)"},
)
