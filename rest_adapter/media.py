"""Sets the images of a proto message from URLs and base64, within the limit of one request."""

from __future__ import annotations

from binascii import Error as BinasciiError
import re
from typing import Final

import pybase64

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError, invalid, too_large


_WHITESPACE: Final = b" \t\r\n\f\v"
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
        if not isinstance(url, str) or not url.strip():
            raise no_image(path)
        if url[:64].lstrip()[:5].lower() == "data:":
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
        if text[:64].lstrip()[:5].lower() == "data:":
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


def _looks_like_base64(url: str) -> bool:
    """Whether a text is the base64 of an image instead of a URL."""
    return (
        len(url) >= _MINIMUM_BASE64
        and url.startswith(_BASE64_OF_IMAGES)
        and ":" not in url[:_MINIMUM_BASE64]
    )


def parse_data_uri(uri: str) -> tuple[str, bytes]:
    """Decodes a `data:` URI, accepting common deviations of clients.

    The base64 marker may be missing, parameters may be in any order, the data may be percent-encoded, wrapped in lines,
    in the URL-safe alphabet and without padding (vllm#28123, QwenLM/Qwen3-VL#202).

    Returns:
        The media type in lower case (may be empty) and the bytes.

    Raises:
        ValueError: There is no comma, no data, or something that is not base64; the text completes "the URI ...".
    """
    comma = uri.find(",")
    if comma < 0:
        raise ValueError("has no comma between its media type and its data")
    return uri[:comma].strip()[5:].partition(";")[0].strip().lower(), _decode(uri, comma + 1)


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
        raise ValueError("has characters that are not in base64")
    # In slices, between which other threads can run.
    slices = range(begin, len(text), _SLICE_CHARS)
    try:
        return b"".join(
            pybase64.b64decode(text[start : start + _SLICE_CHARS], validate=True)
            for start in slices
        )
    except BinasciiError:
        return _decode_loosely(text[begin:].encode("ascii"))


def _decode_loosely(data: bytes) -> bytes:
    if b"%" in data:
        # Not `urllib.parse.unquote`, which makes an object of 50 bytes of every percent sign.
        if _OTHER_ESCAPE.search(data):
            raise ValueError("has characters that are not in base64")
        for escape, character in _ESCAPES.items():
            data = data.replace(escape, character)
    data = data.translate(None, _WHITESPACE).rstrip(b"=")
    if not data:
        raise ValueError("has no data")
    if b"-" in data or b"_" in data:
        data = data.replace(b"-", b"+").replace(b"_", b"/")
    try:
        return pybase64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except BinasciiError:
        raise ValueError("does not contain valid base64 data") from None
