"""Sets the fields of a message from values of a caller, with errors that name the option."""

from __future__ import annotations

from collections.abc import Mapping
import reprlib
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


_Message = TypeVar("_Message", bound=Message)
_SAME: Final[Mapping[str, str]] = {}
_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def built(
    kind: type[_Message], fields: Mapping[str, Any], names: Mapping[str, str] = _SAME
) -> _Message:
    """A message with these fields; protobuf's own errors do not name the field.

    Args:
        kind: The class of the message.
        fields: Values by the name of their option; None = not set.
        names: The fields that have another name than their option.

    Raises:
        TypeError: A value has another type than its field.
        ValueError: A number does not fit its field.
    """
    message = kind()
    for name, value in fields.items():
        if value is None:
            continue
        field = names.get(name, name)
        if isinstance(
            value, (bytes, bytearray)
        ):  # protobuf would decode them, or count their bytes
            raise TypeError(f"{name} is {reprlib.repr(value)}: expected text or numbers, not bytes")
        try:
            message.MergeFrom(kind(**{field: value}))
        except (TypeError, ValueError, OverflowError) as error:
            wrong = TypeError if isinstance(error, TypeError) else ValueError
            why = _range_of(kind, field) if _is_integer(value) else None
            raise wrong(
                f"{name} is {value}, but must be {why}"
                if why and wrong is ValueError
                else f"{name} is {reprlib.repr(value)}: {error}"
            ) from None
    return message


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _range_of(kind: type[Message], field: str) -> str | None:
    """The integers that a field can hold; None if it holds something else."""
    cpp_type = kind.DESCRIPTOR.fields_by_name[field].cpp_type
    if cpp_type not in _RANGES:
        return None
    minimum, maximum = _RANGES[cpp_type]
    return f"between {minimum} and {maximum}"
