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
_KINDS: Final = {
    **dict.fromkeys(_RANGES, ("an integer", "integers")),
    FieldDescriptor.CPPTYPE_BOOL: ("True or False", "truth values"),
    FieldDescriptor.CPPTYPE_DOUBLE: ("a number", "numbers"),
    FieldDescriptor.CPPTYPE_FLOAT: ("a number", "numbers"),
    FieldDescriptor.CPPTYPE_STRING: ("a text", "texts"),
}
"""One value of a field and several, in words."""


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
        descriptor: Any = kind.DESCRIPTOR.fields_by_name[field]
        if _is_taken_apart(descriptor, value):
            raise TypeError(_wrong(name, value, descriptor))
        try:
            message.MergeFrom(kind(**{field: value}))
        except TypeError:
            raise TypeError(_wrong(name, value, descriptor)) from None
        except (ValueError, OverflowError) as error:
            why = _range_of(descriptor) if _is_integer(value) else None
            raise ValueError(
                f"{name} is {value}, but must be {why}"
                if why
                else f"{name} is {reprlib.repr(value)}: {error}"
            ) from None
    return message


def _is_taken_apart(descriptor: FieldDescriptor, value: object) -> bool:
    """Whether protobuf would decode a value, or take it for a list of its letters, bytes or keys."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return True
    is_list = descriptor.is_repeated and not _is_map(descriptor)
    return is_list and isinstance(value, (str, Mapping))


def _wrong(name: str, value: object, descriptor: FieldDescriptor) -> str:
    """The message for a value of another type than its field."""
    message = descriptor.message_type
    one, several = _KINDS.get(descriptor.cpp_type, (message and message.name, "messages"))
    expected = f"a list of {several}" if descriptor.is_repeated else one
    if _is_map(descriptor):
        expected = "a mapping of token ids to numbers"
    return f"{name} is {reprlib.repr(value)}, but must be {expected}"


def _is_map(descriptor: FieldDescriptor) -> bool:
    message = descriptor.message_type
    return message is not None and bool(message.GetOptions().map_entry)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _range_of(descriptor: FieldDescriptor) -> str | None:
    """The integers that a field can hold; None if it holds something else."""
    if descriptor.cpp_type not in _RANGES:
        return None
    minimum, maximum = _RANGES[descriptor.cpp_type]
    return f"between {minimum} and {maximum}"
