"""Counts the fields of a serialised message, before protobuf makes objects of them.

A message of 32 MiB may have millions of fields. Parsing them, and above all looking at each in Python, would stop the
event loop for seconds. Source of the wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from inference_service.errors import InvalidArgumentError


MAX_FIELDS: Final = 2**16
"""Maximum number of fields in a message and its sub-messages; a turn of a conversation has about four."""
MAX_PACKED_BYTES: Final = 2**22
"""Maximum size of all packed numbers: a million token ids of a large vocabulary. Copying more stops all other calls."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES: Final = 10


def check_fields(data: bytes, descriptor: Descriptor) -> None:
    """Refuses a message with too many fields or numbers.

    What this function reads otherwise than the parser would not be counted, so that it refuses whatever it does not
    know: groups, an old form that no field here has and that the parser skips, are as malformed as a truncated message.

    Args:
        data: The serialised message.
        descriptor: Its type.

    Raises:
        DecodeError: It is malformed, or has a group.
        InvalidArgumentError: It has more than `MAX_FIELDS` fields, or lists of numbers of more than `MAX_PACKED_BYTES`.
    """
    count = packed_bytes = 0
    counts: Counter[str] = Counter()  # by the field of the request that they are in
    pending = [(0, len(data), descriptor, "")]
    while pending:
        start, end, kind, path = pending.pop()
        before = count
        while start < end:
            count += 1
            if count > MAX_FIELDS:
                counts[path] += count - before
                raise _too_many(counts)
            tag, start = _varint(data, start, end)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, start = _varint(data, start, end)
            elif wire_type == _BYTES:
                size, start = _varint(data, start, end)
                inner = kind.fields_by_number.get(tag >> 3)
                if inner is None or inner.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                    pass  # unknown, or text or bytes
                elif inner.message_type is not None:
                    inside = (start, _within(start + size, end), inner.message_type)
                    pending.append((*inside, _path(path, inner.name)))
                else:
                    packed_bytes += size
                    if packed_bytes > MAX_PACKED_BYTES:
                        raise _too_many_numbers(_path(path, inner.name), inner.name)
                start = _within(start + size, end)
            elif wire_type in _FIXED_BYTES:
                start = _within(start + _FIXED_BYTES[wire_type], end)
            else:
                raise DecodeError(f"wire type {wire_type}")
        counts[path] += count - before


def _path(outer: str, name: str) -> str:
    """The path of a field of a request, such as `spec.messages`; all that is deeper counts as that."""
    if not outer:
        return name
    return outer if "." in outer else f"{outer}.{name}"


def _too_many(counts: Counter[str]) -> InvalidArgumentError:
    ((path, _),) = counts.most_common(1)
    where = f"; most of them are in {path}" if path else ""
    return InvalidArgumentError(
        f"The request has more than {MAX_FIELDS} fields, counting those of all messages, parts, images and"
        f" options{where}.",
        field=path,
    )


def _too_many_numbers(path: str, name: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"The lists of numbers of the request, among them {name}, have more than {MAX_PACKED_BYTES} bytes.",
        field=path,
    )


def _varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """A variable-length integer and the index after it."""
    if start < end and (byte := data[start]) < 0x80:  # nearly all
        return byte, start + 1
    value = 0
    for index in range(start, min(start + _MAX_VARINT_BYTES, end)):
        byte = data[index]
        value |= (byte & 0x7F) << 7 * (index - start)
        if byte < 0x80:
            return value, index + 1
    raise DecodeError("an integer without end")


def _within(index: int, end: int) -> int:
    if index > end:
        raise DecodeError("truncated")
    return index
