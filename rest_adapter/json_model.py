"""Strict models of JSON objects, and their unknown fields: for the schemas of all dialects.

Numbers are strict as with OpenAI: `"0.5"` is not a valid temperature.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from rest_adapter.errors import unsupported


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Float = Annotated[float, Field(allow_inf_nan=False)]

_Item = TypeVar("_Item")
# Without fail-fast, millions of invalid items would become millions of errors.
Items = Annotated[list[_Item], Field(fail_fast=True)]


class JsonModel(BaseModel):
    """A JSON object; fields that are not in the schema are kept for `unknown_fields`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class ClosedModel(BaseModel):
    """A JSON object whose unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def unknown_fields(
    model: JsonModel,
    *,
    unsupported_unless: Mapping[str, Collection[object]] | None = None,
    ignored: Collection[str] = (),
    path: str = "",
) -> Iterator[str]:
    """The paths of the fields of one object that are unknown.

    Args:
        model: The object.
        unsupported_unless: Known but unsupported fields, with the values that have no effect; null and empty values
            never have one.
        ignored: Known fields that have no effect, whatever their value.
        path: The path of the object.

    Raises:
        ApiError: A field is known but not supported, and its value would have an effect.
    """
    neutral = unsupported_unless or {}
    for name, value in (model.__pydantic_extra__ or {}).items():
        where = f"{path}.{name}" if path else name
        if name in neutral:
            if not _is_absent(value) and value not in neutral[name]:
                raise unsupported(where)
        elif name not in ignored:
            yield where


def _is_absent(value: object) -> bool:
    """Whether a field with this value is equivalent to an absent one."""
    return value is None or value in ([], {}, "")
