"""Copies the fields of a JSON object to fields of the same names in a proto message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pydantic import BaseModel

from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


SAMPLING_SCALARS: Final = tuple(
    field.name
    for field in sampling_pb.SamplingOptions.DESCRIPTOR.fields
    if field.name != "logit_bias"
)
"""The sampling settings with a single value."""


def set_fields(target: Any, source: object, names: Sequence[str]) -> None:
    """Copies the fields that are not None."""
    for name in names:
        value = getattr(source, name)
        if value is not None:
            setattr(target, name, value)


def require_fields(model: type[BaseModel], names: Iterable[str]) -> None:
    """Checks at start-up that a model has fields of these names.

    Raises:
        TypeError: A field is missing.
    """
    missing = [name for name in names if name not in model.model_fields]
    if missing:
        raise TypeError(
            f"{model.__module__}.{model.__qualname__} has no field {', '.join(missing)}, but the proto has"
        )
