"""Copies the fields of a JSON object to fields of the same names in a proto message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel

from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


SAMPLING_SCALARS: Final = tuple(
    field.name for field in sampling_pb.SamplingOptions.DESCRIPTOR.fields if not field.is_repeated
)
"""The sampling settings with a single value."""


def set_fields(target: Any, source: object, names: Sequence[str]) -> None:
    """Copies the fields that are not None."""
    for name in names:
        value = getattr(source, name)
        if value is not None:
            setattr(target, name, value)


def require_sampling_fields(model: type[BaseModel]) -> None:
    """Checks at start-up that a model has every sampling setting of the proto, under the same name.

    Raises:
        TypeError: A setting is missing.
    """
    fields = sampling_pb.SamplingOptions.DESCRIPTOR.fields
    missing = [field.name for field in fields if field.name not in model.model_fields]
    if missing:
        raise TypeError(
            f"{model.__module__}.{model.__qualname__} lacks the sampling settings of the proto: {', '.join(missing)}"
        )
