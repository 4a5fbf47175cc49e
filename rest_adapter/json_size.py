"""Counts the values of a JSON body before they become objects.

A body of 44 MiB can have 15 million empty lists, which are gigabytes of objects. Images are few long strings.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Final, Self

from rest_adapter.errors import too_large


MAX_STRINGS: Final = 100_000
"""Maximum number of strings, names of fields included."""

MAX_CONTAINERS: Final = 100_000
"""Maximum number of objects and lists."""

MAX_VALUES: Final = 1_000_000
"""Maximum number of all values, such as the token ids of prompts."""

_BYTES_PER_OBJECT: Final = 250
_BYTES_PER_VALUE: Final = 40
_CHECKED_BYTES: Final = 16 * 1024
LONG_BYTES: Final = 4096
"""Shorter strings count as text, whatever they are."""

_SLICE_BYTES: Final = 2**18
_WIDE: Final = re.compile(rb"\\u(?:[^0]|0[^0]|00[^0-7])")
_WIDE_BYTES: Final = 5  # of a match
_MEDIA: Final = re.compile(
    rb"(?:\s|\\[nrt])*+(?:[Dd][Aa][Tt][Aa]:|(?:[A-Za-z0-9+/_=-]|[\r\n]|\\[/nr]|\\u00[0-9A-Fa-f]{2}){256})"
)
"""A `data:` URI or base64, perhaps in lines; of JSON, perhaps with `/` or `+` escaped, as some encoders write them."""


@dataclass(frozen=True, slots=True)
class Size:
    """How many values JSON has.

    Attributes:
        strings: Strings, names of fields included.
        containers: Objects and lists.
        values: All values but the fields of objects that are no containers.
        media_bytes: Bytes of the strings of ASCII that begin as images do, wherever they stand.
    """

    strings: int = 0
    containers: int = 0
    values: int = 0
    media_bytes: int = 0

    @classmethod
    def of(cls, data: bytes | bytearray) -> Self:
        """The size of JSON; whether it is valid does not matter. Of too many strings only these are counted."""
        text = _without_escapes(data) if b"\\" in data else data
        strings = text.count(b'"') // 2
        if strings > MAX_STRINGS:
            return cls(strings)
        outside, media = _without_strings(text)
        containers = outside.count(b"[") + outside.count(b"{")
        return cls(strings, containers, containers + outside.count(b",") + 1, media)

    def __add__(self, other: Size) -> Size:
        """Of both."""
        return Size(
            self.strings + other.strings,
            self.containers + other.containers,
            self.values + other.values,
            self.media_bytes + other.media_bytes,
        )

    @property
    def memory(self) -> int:
        """A bound on the memory of its objects, in bytes, without the characters of its strings."""
        objects = self.strings + self.containers
        return objects * _BYTES_PER_OBJECT + self.values * _BYTES_PER_VALUE

    def check(self, what: str) -> None:
        """Refuses too many values.

        Args:
            what: What has them, for the error.

        Raises:
            ApiError: There are too many.
        """
        for count, maximum, kind in (
            (self.strings, MAX_STRINGS, "strings"),
            (self.containers, MAX_CONTAINERS, "objects and lists"),
            (self.values, MAX_VALUES, "values"),
        ):
            if count > maximum:
                raise too_large(
                    f"The {what} has {count} {kind}, but at most {maximum} are allowed."
                )


def check_size(data: bytearray, *, max_text_bytes: int) -> int:
    """Refuses a JSON body with too many values or too much text; `media_places` knows more when it is parsed.

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
    size = Size.of(data)
    size.check("body")
    text_bytes = len(data) - size.media_bytes
    if text_bytes > max_text_bytes:
        raise too_large(
            f"The body has {text_bytes / 2**20:.1f} MiB without its images, but at most "
            f"{max_text_bytes / 2**20:g} MiB are allowed (--max-text-mib)."
        )
    return size.memory


def _without_escapes(data: bytes | bytearray) -> bytearray:
    """The body without escaped backslashes and quotation marks; in slices, between which other threads can run."""
    text, start = bytearray(), 0
    while start < len(data):
        piece = bytearray(data[start : start + _SLICE_BYTES])
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        if backslashes % 2:
            piece += data[
                start + len(piece) : start + len(piece) + 1
            ]  # the other half of an escape
        start += len(piece)
        text += piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text


def _without_strings(text: bytes | bytearray) -> tuple[bytes, int]:
    """What is outside of all strings, and the bytes of those strings that are images, of ASCII alone."""
    outside, media, end = [], 0, 0
    # Not `split`, which copies the images.
    while (begin := text.find(b'"', end)) >= 0:
        outside.append(text[end:begin])
        end = text.find(b'"', begin + 1)
        if end < 0:
            return b"".join(outside), media
        length = end - begin - 1
        if (
            length > LONG_BYTES
            and is_media(text[begin + 1 : begin + LONG_BYTES])
            and not _is_wide(text, begin + 1, end)
        ):
            media += length
        end += 1
    return b"".join([*outside, text[end:]]), media


def _is_wide(text: bytes | bytearray, begin: int, end: int) -> bool:
    """Whether a string has a character beyond ASCII, so that it takes up to four times the memory."""
    for start in range(begin, end, _SLICE_BYTES):
        piece = text[start : min(end, start + _SLICE_BYTES + _WIDE_BYTES - 1)]
        if not piece.isascii() or (b"\\u" in piece and _WIDE.search(piece)):
            return True
    return False


def is_media(begin: bytes | bytearray) -> bool:
    """Whether a string that begins like this, parsed or as JSON, may be an image: a `data:` URI or plain base64."""
    return _MEDIA.match(begin) is not None
