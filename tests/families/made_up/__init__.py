"""A model family that the service does not know: the example of what a new one brings."""

from __future__ import annotations

from inference_service.families.family import Family
from tests.families.made_up.spec import NAME, positions, read, tensors


FAMILY = Family(
    name=NAME,
    model_type="made_up_model",
    package=__name__,
    read=read,
    tensors=tensors,
    positions=positions,
    memory_remarks={"float32": "this model is made up"},
)
