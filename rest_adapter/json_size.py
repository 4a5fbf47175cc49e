"""Counts the values of a JSON body before they become objects.

A body of 44 MiB can have 15 million empty lists, which are gigabytes of objects. Images are few long strings.
"""

from __future__ import annotations

import re
from typing import Final

from rest_adapter.errors import ApiError, too_large


MAX_STRINGS: Final = 100_000
"""Maximum number of strings, names of fields included."""

MAX_CONTAINERS: Final = 100_000
"""Maximum number of objects and lists."""

MAX_VALUES: Final = 1_000_000
"""Maximum number of all values, such as the token ids of prompts."""

_BYTES_PER_OBJECT: Final = 250
_BYTES_PER_VALUE: Final = 40
_CHECKED_BYTES: Final = 16 * 1024
_LONG_BYTES: Final = 4096
_SLICE_BYTES: Final = 2**18
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_=-]{256}")


def check_size(data: bytearray, *, max_text_bytes: int) -> int:
    """Refuses a JSON body with too many values or too much text.

    Args:
        data: The body; whether it is valid JSON does not matter.
        max_text_bytes: Maximum size without images, in bytes.

    Returns:
        A bound on the memory of its objects, in bytes, without the characters of its strings.

    Raises:
        ApiError: There is too much.
    """
    if len(data) <= _CHECKED_BYTES:
        return 0
    text = _without_escapes(data) if b"\\" in data else data
    strings = text.count(b'"') // 2
    _check(strings, MAX_STRINGS, "strings")
    outside, media = _without_strings(text)
    containers = outside.count(b"[") + outside.count(b"{")
    _check(containers, MAX_CONTAINERS, "objects and lists")
    values = containers + outside.count(b",") + 1
    _check(values, MAX_VALUES, "values")
    if len(data) - media > max_text_bytes:
        raise too_large(
            f"The body has {(len(data) - media) / 2**20:.1f} MiB without its images, but at most "
            f"{max_text_bytes / 2**20:g} MiB are allowed (--max-text-mib)."
        )
    return (strings + containers) * _BYTES_PER_OBJECT + values * _BYTES_PER_VALUE


def _without_escapes(data: bytearray) -> bytearray:
    """The body without escaped backslashes and quotation marks; in slices, between which other threads can run."""
    text, start = bytearray(), 0
    while start < len(data):
        piece = data[start : start + _SLICE_BYTES]
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if backslashes % 2:
            piece += data[
                start + len(piece) : start + len(piece) + 1
            ]  # the other half of an escape
        start += len(piece)
        text += piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text


def _without_strings(text: bytearray) -> tuple[bytes, int]:
    """What is outside of all strings, and the bytes of those strings that are images."""
    outside, media, end = [], 0, 0
    # Not `split`, which copies the images.
    while (begin := text.find(b'"', end)) >= 0:
        outside.append(text[end:begin])
        end = text.find(b'"', begin + 1)
        if end < 0:
            return b"".join(outside), media
        length = end - begin - 1
        if length > _LONG_BYTES and _is_media(text[begin + 1 : begin + _LONG_BYTES]):
            media += length
        end += 1
    return b"".join([*outside, text[end:]]), media


def _check(count: int, maximum: int, what: str) -> None:
    if count > maximum:
        raise ApiError(
            413,
            f"The body has {count} {what}, but at most {maximum} are allowed.",
            reason="MESSAGE_TOO_LARGE",
        )


def _is_media(begin: bytearray) -> bool:
    """Whether a string that begins like this is an image: a `data:` URI or plain base64."""
    begin = begin.lstrip()
    return begin[:5].lower() == b"data:" or _BASE64.match(begin) is not None
