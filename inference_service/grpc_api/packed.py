"""Responses as bytes that are made piece by piece.

Copying and serialising a message are each one call of C that holds the interpreter's lock, for as long as the message
is large, in whatever thread. The pieces of a message can be serialised one by one: bytes of the same message that
follow each other are merged by whoever reads them (protobuf's "last one wins, repeated fields are concatenated").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message


PIECE: Final = 4096
"""Values of a repeated field that are serialised at once; numbers and short texts take less than a millisecond."""

_LENGTH_DELIMITED: Final = 2


@dataclass(frozen=True, slots=True)
class Packed:
    """A serialised response, which a method may return instead of the message.

    Attributes:
        data: Its bytes.
    """

    data: bytes


def packed(message: Message, **values: Sequence[Any]) -> Packed:
    """A message with more values in repeated fields, by their names."""
    more = (
        type(message)(**{name: all_of_them[start : start + PIECE]}).SerializeToString()
        for name, all_of_them in values.items()
        for start in range(0, len(all_of_them), PIECE)
    )
    return Packed(b"".join((message.SerializeToString(), *more)))


def embedded(number: int, parts: Iterable[bytes]) -> list[bytes]:
    """The field with this number whose value is a message in parts, as bytes in parts."""
    parts = list(parts)
    return [
        _varint(number << 3 | _LENGTH_DELIMITED),
        _varint(sum(map(len, parts))),
        *parts,
    ]


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
