"""Reads and checks single fields of proto messages; errors name the field, its value and the limit."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from decimal import Decimal
import math
from typing import Any, Final

from google.protobuf.message import Message as ProtoMessage

from inference_service.errors import InvalidArgumentError
from inference_service.sampling import Range
from qwenvl.inference.v1 import message_pb2 as message_pb


PIXELS: Final = Range(1, 2**40)
"""Allowed areas of an image."""

_MAX_TOKEN_ID: Final = 2**31 - 1
_MANY_ZEROS: Final = 1e21
_MAX_QUOTED: Final = 80
_REJECTS: Final = {
    message_pb.OVERSIZED_IMAGE_UNSPECIFIED: None,
    message_pb.OVERSIZED_IMAGE_DOWNSIZE: False,
    message_pb.OVERSIZED_IMAGE_REJECT: True,
}


def quoted(text: str) -> str:
    """A caller's text for a message, shortened."""
    return repr(text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}...")


def optional_integer(message: ProtoMessage, name: str, limits: Range, path: str) -> int | None:
    """The value of an integer field with presence, or None.

    Raises:
        InvalidArgumentError: The value is out of range.
    """
    value: int | None = optional(message, name)
    check_range(value, limits, f"{path}.{name}")
    return value


def optional(message: ProtoMessage, name: str) -> Any:
    """The value of a field with presence, or None."""
    return getattr(message, name) if message.HasField(name) else None


def check_range(
    value: float | None,
    limits: Range,
    field: str,
    *,
    name: str = "",
    setting: str = "",
    advice: str = "",
) -> None:
    """Checks that a value, if there is one, is allowed.

    Args:
        value: The value.
        limits: The allowed values.
        field: Path of the field.
        name: The value's name for the message; empty = that of the field.
        setting: The flag that sets the limits, if any.
        advice: How to ask for what the value may mean, if there is a way.

    Raises:
        InvalidArgumentError: It is not.
    """
    if value is not None and value not in limits:
        minimum, maximum = _plain(limits.minimum), _plain(limits.maximum)
        origin = setting and f" ({setting})"
        raise InvalidArgumentError(
            f"{name or field_name(field)} is {_plain(value)}, but must be between {minimum} and {maximum}{origin}"
            + (f"; {advice}." if advice else "."),
            field=field,
        )


def check_token_ids(token_ids: Iterable[int], field: str) -> None:
    """Checks token ids against every vocabulary; the backend knows the model's.

    Raises:
        InvalidArgumentError: One cannot be a token id.
    """
    for token_id in token_ids:
        if not 0 <= token_id <= _MAX_TOKEN_ID:
            raise InvalidArgumentError(
                f"{field_name(field)} contains {token_id}; token ids are between 0 and {_MAX_TOKEN_ID}.",
                field=field,
            )


def check_count(items: Sized, maximum: int, field: str) -> None:
    """Checks that there are not too many items.

    Raises:
        InvalidArgumentError: There are more than `maximum`.
    """
    if len(items) > maximum:
        raise InvalidArgumentError(
            f"{field_name(field)} has {len(items)} entries, but at most {maximum} are allowed.",
            field=field,
        )


def check_bytes(text: str, maximum: int, field: str) -> None:
    """Checks that a text is not too long in UTF-8.

    Raises:
        InvalidArgumentError: It has more than `maximum` bytes.
    """
    size = len(text.encode())
    if size > maximum:
        raise InvalidArgumentError(
            f"{field_name(field)} has {size} bytes, but at most {maximum} are allowed.", field=field
        )


def rejects_oversized(value: message_pb.OversizedImage, path: str) -> bool | None:
    """Whether an image with more pixels than its maximum is refused; None = unset.

    Raises:
        InvalidArgumentError: The value is unknown to this version.
    """
    if value not in _REJECTS:
        raise InvalidArgumentError(
            f"oversized is {value}, but must be OVERSIZED_IMAGE_DOWNSIZE or OVERSIZED_IMAGE_REJECT.",
            field=f"{path}.oversized",
        )
    return _REJECTS[value]


def field_name(field: str) -> str:
    """The last component of a path; with its parent in `stop`, where it alone is ambiguous."""
    parent, _, name = field.rpartition(".")
    return f"{parent.rpartition('.')[2]}.{name}" if parent.endswith(".stop") else name


def _plain(number: float) -> str:
    """A number without an exponent, unless it would have many zeros."""
    if not math.isfinite(number) or abs(number) >= _MANY_ZEROS:
        return repr(number)
    text = f"{Decimal(repr(number)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
