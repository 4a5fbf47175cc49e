"""Sets the fields of a message from values of a caller, with errors that name the option."""

from __future__ import annotations

from collections.abc import Mapping
import reprlib
from typing import Any, Final, TypeVar

from google.protobuf.message import Message


_Message = TypeVar("_Message", bound=Message)
_SAME: Final[Mapping[str, str]] = {}


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
            raise wrong(f"{name} is {reprlib.repr(value)}: {error}") from None
    return message
