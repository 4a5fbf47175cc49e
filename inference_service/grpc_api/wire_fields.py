"""Counts the fields of a serialised message, before protobuf makes objects of them.

A message of 32 MiB may have millions of fields. Parsing them, and above all looking at each in Python, would stop the
event loop for seconds. Source of the wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from inference_service.errors import InvalidArgumentError


MAX_FIELDS: Final = 2**16
"""Maximum number of fields in a message and its sub-messages; a turn of a conversation has about four."""
MAX_PACKED_BYTES: Final = 2**22
"""Maximum size of all packed numbers: a million token ids of a large vocabulary. Copying more stops all other calls."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}


def check_fields(data: bytes, descriptor: Descriptor) -> None:
    """Refuses a message with too many fields or numbers; a malformed one is left to the parser.

    Args:
        data: The serialised message.
        descriptor: Its type.

    Raises:
        InvalidArgumentError: It has more than `MAX_FIELDS` fields, or lists of numbers of more than `MAX_PACKED_BYTES`.
    """
    try:
        _count(data, descriptor)
    except IndexError:  # truncated
        return


def _count(data: bytes, descriptor: Descriptor) -> None:
    count = packed_bytes = 0
    pending = [(0, len(data), descriptor)]
    while pending:
        start, end, kind = pending.pop()
        while start < end:
            count += 1
            if count > MAX_FIELDS:
                raise InvalidArgumentError(
                    f"The request has more than {MAX_FIELDS} fields, counting those of all messages, parts and images."
                )
            tag, start = _varint(data, start)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, start = _varint(data, start)
            elif wire_type == _BYTES:
                size, start = _varint(data, start)
                inner = kind.fields_by_number.get(tag >> 3)
                if inner is not None and inner.message_type is not None:
                    pending.append((start, min(start + size, end), inner.message_type))
                elif inner is not None and inner.cpp_type != FieldDescriptor.CPPTYPE_STRING:
                    packed_bytes += size
                    if packed_bytes > MAX_PACKED_BYTES:
                        raise InvalidArgumentError(
                            f"The lists of numbers of the request, among them {inner.name}, have more than"
                            f" {MAX_PACKED_BYTES} bytes."
                        )
                start += size
            elif wire_type in _FIXED_BYTES:
                start += _FIXED_BYTES[wire_type]
            # Else a group, an old form that no field here has: its tags are counted, its fields follow.


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """A variable-length integer and the index after it."""
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise IndexError
