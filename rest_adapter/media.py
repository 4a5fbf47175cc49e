"""Sets the images of a proto message from URLs and base64, within the limit of one request."""

from __future__ import annotations

from binascii import Error as BinasciiError
from collections.abc import Iterator
import re
from typing import AnyStr, Final
from urllib.parse import unquote, unquote_to_bytes

import pybase64

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError, invalid, too_large
from rest_adapter.json_text import shown


# Around a URL, text editors and browsers leave white space and invisible marks.
_AROUND: Final = " \t\n\v\f\r\xa0\xad\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u2060\u3000\ufeff"
_MAX_HEAD_CHARS: Final = 1024
_DATA_URI: Final = re.compile(
    r"data(?::|%3a)|(?:[\w.+-]{1,64}/[\w.+*-]{1,64}\s*;\s*)?base64(?:,|://)", re.IGNORECASE
)
"""How a `data:` URI begins, also if it is percent-encoded or lacks its scheme."""
_BASE64_MARK: Final = re.compile(r"(?:[;:]|%3b|^)\s*base64\s*(?:,|%2c|://)", re.IGNORECASE)
_DATA_SCHEME: Final = re.compile(r"(?:data(?::|%3a)(?://)?\s*)++", re.IGNORECASE)
_COMMA: Final = re.compile(r",|%2c", re.IGNORECASE)
_NOT_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/]")
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_WHITESPACE: Final = b" \t\r\n\f\v"
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
# Decoders of forms leave a space instead of a plus sign.
_OF_FORMS: Final = bytes.maketrans(b"-_ ", b"+/+")
_BESIDE_SPACES: Final = _WHITESPACE.replace(b" ", b"")
_MIB: Final = 2**20
# How the base64 of JPEG, PNG, GIF, WebP (RIFF), BMP and TIFF begins.
_BASE64_OF_IMAGES: Final = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK")
_MINIMUM_BASE64: Final = 64
# What an encoder of URLs escapes in base64; it leaves letters and digits as they are.
_ESCAPES: Final = {
    f"%{ord(character):{form}}".encode(): character.encode()
    for character in "+/=-_ \t\r\n"
    for form in ("02X", "02x")
}
_SLICE_CHARS: Final = 4 * 2**18
_OTHER_ESCAPE: Final = re.compile(
    b"%(?!" + b"|".join(escape.removeprefix(b"%") for escape in _ESCAPES) + b")"
)


OVERSIZED: Final = {
    "downsize": message_pb.OVERSIZED_IMAGE_DOWNSIZE,
    "error": message_pb.OVERSIZED_IMAGE_REJECT,
}
"""The values of `oversized_image`."""


class ImageSources:
    """Sets the sources of the images of one request.

    Args:
        max_bytes: Maximum total bytes of all decoded images.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._left = max_bytes

    def set(self, image: message_pb.Image, url: object, path: str) -> None:
        """Sets the bytes of a `data:` URI or of an image's bare base64, or the URI if it is another one.

        Args:
            image: The image.
            url: The URL, as in the JSON.
            path: Path of the URL in the JSON, for errors.

        Raises:
            ApiError: There is no URL, a `data:` URI without base64, or the images of the request are too large.
        """
        if not isinstance(url, str):
            raise no_image(path)
        url = _stripped(url)
        if not url:
            raise no_image(path)
        if _is_data_uri(url):
            try:
                mime_type, data = parse_data_uri(url)
            except ValueError as error:
                raise invalid(
                    f"The data: URI in '{path}' {error}.", path, "INVALID_IMAGE"
                ) from None
            self._set_data(image, mime_type, data)
        elif _looks_like_base64(url):
            self.set_base64(image, url, "", path)
        else:
            image.uri = url

    def set_base64(self, image: message_pb.Image, text: str, mime_type: str, path: str) -> None:
        """Sets the bytes of an image that is sent as base64, or as a `data:` URI where base64 is expected.

        Args:
            image: The image.
            text: The base64, as in the JSON.
            mime_type: The media type according to the client; may be empty.
            path: Path of the text in the JSON, for errors.

        Raises:
            ApiError: It is not base64, or the images of the request are too large.
        """
        text = _stripped(text)
        if _is_data_uri(text):
            self.set(image, text, path)
            return
        try:
            data = _decode(text)
        except ValueError as error:
            raise invalid(f"The base64 text in '{path}' {error}.", path, "INVALID_IMAGE") from None
        self._set_data(image, mime_type.lower(), data)

    def _set_data(self, image: message_pb.Image, mime_type: str, data: bytes) -> None:
        image.mime_type, image.data = mime_type, data
        self._left -= len(data)
        if self._left < 0:
            raise too_large(
                f"The decoded images of the request have more than {self._max_bytes / _MIB:g} MiB in total,"
                " the maximum (--max-media-mib)."
            )


def no_image(path: str) -> ApiError:
    """The error for an image without a source, which is expected at `path`."""
    return invalid(
        f"'{path}' has no URL of an image; send an http(s) URL or a data: URI.",
        path,
        "INVALID_IMAGE_URL",
    )


def as_data_uri(text: str, mime_type: str) -> str:
    """Base64, or a `data:` URI where base64 is expected, as a `data:` URI."""
    text = _stripped(text)
    return text if text[:5].lower() == "data:" else f"data:{mime_type};base64,{text}"


def _looks_like_base64(url: str) -> bool:
    """Whether a text is the base64 of an image instead of a URL."""
    return (
        len(url) >= _MINIMUM_BASE64
        and url.startswith(_BASE64_OF_IMAGES)
        and ":" not in url[:_MINIMUM_BASE64]
    )


def _stripped(text: str) -> str:
    """The text without what is around a URL."""
    return text[_begin_of(text, _AROUND) : _end_of(text, _AROUND)]


def _begin_of(text: AnyStr, around: AnyStr) -> int:
    """Where a text without the characters before it begins; in slices, as all at once would stop the others."""
    begin = 0
    while begin < len(text):
        piece = text[begin : begin + _SLICE_CHARS]
        kept = piece.lstrip(around)
        begin += len(piece) - len(kept)
        if kept:
            break
    return begin


def _end_of(text: AnyStr, around: AnyStr) -> int:
    """Where it ends without the characters behind it; in slices."""
    end = len(text)
    while end > 0:
        piece = text[max(0, end - _SLICE_CHARS) : end]
        kept = piece.rstrip(around)
        end -= len(piece) - len(kept)
        if kept:
            break
    return end


def _slices(text: AnyStr, begin: int = 0) -> Iterator[AnyStr]:
    """A text in pieces, between which other threads can run; a call of C over all of it would stop them."""
    for start in range(begin, len(text), _SLICE_CHARS):
        yield text[start : start + _SLICE_CHARS]


def _search(character: re.Pattern[AnyStr], text: AnyStr) -> re.Match[AnyStr] | None:
    """The first match of a pattern of one character; in slices."""
    ends = range(_SLICE_CHARS, len(text) + _SLICE_CHARS, _SLICE_CHARS)
    matches = (character.search(text, end - _SLICE_CHARS, end) for end in ends)
    return next(filter(None, matches), None)


def _is_data_uri(text: str) -> bool:
    return _DATA_URI.match(text, 0, _MAX_HEAD_CHARS) is not None


def parse_data_uri(uri: str) -> tuple[str, bytes]:
    """Decodes a `data:` URI, accepting common deviations of clients.

    The base64 marker may be missing, parameters may be in any order and contain commas, and the URI may stand in
    another one. The data may be percent-encoded, wrapped in lines, in the URL-safe alphabet and without padding
    (vllm#28123, QwenLM/Qwen3-VL#202). Without a marker, what is not base64 is percent-encoded bytes (RFC 2397).

    Returns:
        The media type in lower case (may be empty) and the bytes.

    Raises:
        ValueError: There is no comma near its beginning, no data, or something that is not base64; the text completes
            "the URI ...".
    """
    # All that looks for more than one character looks at the head alone, so that it takes no time or memory of a body.
    marks = [*_BASE64_MARK.finditer(uri, 0, _MAX_HEAD_CHARS)]
    found = marks[-1] if marks else _COMMA.search(uri, 0, _MAX_HEAD_CHARS)
    if found is None:
        within = f" within its first {_MAX_HEAD_CHARS} characters" * (len(uri) > _MAX_HEAD_CHARS)
        raise ValueError(f"has no comma between its media type and its data{within}")
    head = _DATA_SCHEME.sub("", uri[: found.start()])
    if marks and (fragment := uri.find("#", found.end())) >= 0:
        uri = uri[:fragment]  # belongs to no URL's data; of percent-encoded bytes it may be one
    mime_type = unquote(head).partition(";")[0].strip().lower()
    try:
        return mime_type, _decode(uri, found.end())
    except ValueError:
        if marks or found.end() == len(uri):
            raise
        pieces = (piece.encode() for piece in _slices(uri, found.end()))
        return mime_type, _percent_decoded(b"".join(pieces))


def _percent_decoded(data: bytes) -> bytes:
    """The bytes of percent-encoded data; in slices, as decoding makes an object of 50 bytes of every percent sign."""
    pieces = []
    start = 0
    while start < len(data):
        end = start + _SLICE_CHARS
        if b"%" in data[end - 2 : end]:
            end = data.rindex(b"%", start, end)  # an escape is not divided
        pieces.append(unquote_to_bytes(data[start:end]))
        start = end
    return b"".join(pieces)


def _decode(text: str, begin: int = 0) -> bytes:
    """Decodes base64 in any of the spellings above.

    Args:
        text: The base64, and what is before it.
        begin: Where it begins.

    Raises:
        ValueError: It is empty or not base64.
    """
    if begin == len(text):
        raise ValueError("has no data")
    if not text.isascii():
        text, begin = _stripped(text[begin:]), 0
        found = _search(_NOT_ASCII, text)
        if found:
            raise ValueError(
                "does not contain valid base64 data:"
                f" character {found.start() + 1} is {shown(found[0])} (U+{ord(found[0]):04X})"
            )
    try:
        return b"".join(pybase64.b64decode(piece, validate=True) for piece in _slices(text, begin))
    except BinasciiError:
        pieces = (piece.encode("ascii") for piece in _slices(text, begin))
        return _decode_loosely(b"".join(pieces))


def _decode_loosely(data: bytes) -> bytes:
    if b"%" in data:
        data = _without_escapes(data)
    data = data[_begin_of(data, _WHITESPACE) : _end_of(data, _WHITESPACE)]
    table, beside = _URL_SAFE, _WHITESPACE
    if b" " in data and not any(other in data for other in b"+-\n"):
        table, beside = _OF_FORMS, _BESIDE_SPACES
    data = b"".join(piece.translate(table, beside) for piece in _slices(data))
    data = data[: _end_of(data, b"=")]
    if not data:
        raise ValueError("has no data")
    try:
        # Only the last slice may lack padding.
        padded = (piece + b"=" * (-len(piece) % 4) for piece in _slices(data))
        return b"".join(pybase64.b64decode(piece, validate=True) for piece in padded)
    except BinasciiError:
        raise ValueError(f"does not contain valid base64 data: {_fault_of(data)}") from None


def _without_escapes(data: bytes) -> bytes:
    # Not `urllib.parse.unquote`, which makes an object of 50 bytes of every percent sign.
    text, start = bytearray(), 0
    while start < len(data):
        end = start + _SLICE_CHARS
        escape = data.find(b"%", end - 2, end)
        if escape >= 0:
            end = escape + 3  # not within an escape
        piece = data[start:end]
        if _OTHER_ESCAPE.search(piece):
            raise ValueError("has characters that are not in base64")
        for sequence, character in _ESCAPES.items():
            piece = piece.replace(sequence, character)
        text += piece
        start = end
    return bytes(text)


def _fault_of(data: bytes) -> str:
    """Why something is not base64."""
    found = _search(_NOT_BASE64, data)
    if found is None:
        return f"it has {len(data)} characters, which is not a possible number"
    return f"character {found.start() + 1} is {shown(found[0].decode())}"
