"""Strict models of JSON objects, and their unknown fields: for the schemas of all dialects.

Numbers are strict as with OpenAI: `"0.5"` is not a valid temperature. A whole number may be written as `512.0`, as
clients in languages with one kind of number do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Final, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from rest_adapter.errors import unsupported


MAX_INT32: Final = 2**31 - 1


def whole_number(value: object) -> object:
    """The integer of a number without a fraction; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int32 = Annotated[int, Field(ge=-(2**31), le=MAX_INT32), BeforeValidator(whole_number)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), BeforeValidator(whole_number)]
Count = Annotated[
    int,
    Field(ge=-(2**31)),
    BeforeValidator(whole_number),
    AfterValidator(lambda value: min(value, MAX_INT32)),
]
"""An int32 for which every larger number means the same as the largest."""
Seed = Annotated[
    int,
    Field(ge=-(2**63), le=2**64 - 1),
    BeforeValidator(whole_number),
    AfterValidator(lambda value: value if value < 2**63 else value - 2**64),
]
"""64 bits, signed or unsigned, as the signed number of the same bits."""
Float = Annotated[float, Field(allow_inf_nan=False)]

_Item = TypeVar("_Item")
# Without fail-fast, millions of invalid items would become millions of errors.
Items = Annotated[list[_Item], Field(fail_fast=True)]


def asks_for_nothing(value: object) -> bool:
    """Whether a field with this value is equivalent to an absent one: null, `false`, or empty."""
    return value is None or value is False or value in ([], {}, "")


def without_neutral_values(value: object, depth: int = 8) -> object:
    """An object without its fields that ask for nothing; any other value as it is.

    Clients that dump their classes send each field that is not set, also within fields that are not supported here.

    Args:
        value: The value of a field.
        depth: How deep in it objects are looked at.
    """
    if not isinstance(value, dict) or not depth:
        return value
    kept = {name: without_neutral_values(inner, depth - 1) for name, inner in value.items()}
    return {name: inner for name, inner in kept.items() if not asks_for_nothing(inner)}


def _is_neutral(value: object, neutral: Collection[object]) -> bool:
    if value is False and any(default is True for default in neutral):
        return False
    asked = without_neutral_values(value)
    return asks_for_nothing(asked) or asked in neutral


class JsonModel(BaseModel):
    """A JSON object; fields that are not in the schema are kept for `unknown_fields`.

    Optional fields that ask for nothing count as absent, whatever their type: form-like clients send every field, the
    unused ones as `false` or empty.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral_values(cls, document: object) -> object:
        if not isinstance(document, dict):
            return document
        return {name: value for name, value in document.items() if not cls._is_neutral(name, value)}

    @classmethod
    def _is_neutral(cls, name: str, value: object) -> bool:
        info = cls.model_fields.get(name)
        if info is None or info.is_required() or info.annotation is Any:
            return False
        # `false` is a choice where true is one.
        return asks_for_nothing(value) and not (
            value is False and bool in get_args(info.annotation)
        )


class ClosedModel(JsonModel):
    """A JSON object whose unknown fields are refused by `unknown_fields`, unless they ask for nothing."""


def unknown_fields(
    model: JsonModel,
    *,
    unsupported_unless: Mapping[str, Collection[object]] | None = None,
    ignored: Collection[str] = (),
    path: str = "",
) -> Iterator[str]:
    """The paths of the fields of an object, and of the objects in it, that are unknown.

    Args:
        model: The object.
        unsupported_unless: Known but unsupported fields, with the values that have no effect; those that ask for
            nothing never have one, except `false` where `true` is the default.
        ignored: Known fields that have no effect, whatever their value.
        path: The path of the object.

    Raises:
        ApiError: A field is known but not supported, or unknown in a closed object, and its value would have an effect.
    """
    neutral = unsupported_unless or {}
    for name, value in (model.__pydantic_extra__ or {}).items():
        where = f"{path}.{name}" if path else name
        if name in neutral:
            if not _is_neutral(value, neutral[name]):
                raise unsupported(where, value)
        elif isinstance(model, ClosedModel):
            if not asks_for_nothing(without_neutral_values(value)):
                raise unsupported(where, value)
        elif name not in ignored:
            yield where
    for name, inner in model:
        if isinstance(inner, JsonModel):
            yield from unknown_fields(inner, path=f"{path}.{name}" if path else name)
