"""Sets the images of a proto message from URLs, including `data:` URIs, within the limit of one request."""

from __future__ import annotations

from binascii import Error as BinasciiError
import re
from typing import Final

import pybase64

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid, too_large


_WHITESPACE: Final = b" \t\r\n\f\v"
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
        self._left = max_bytes

    def set(self, image: message_pb.Image, url: object, path: str) -> None:
        """Sets the bytes of a `data:` URI, or the URI if it is another one.

        Args:
            image: The image.
            url: The URL, as in the JSON.
            path: Path of the URL in the JSON, for errors.

        Raises:
            ApiError: There is no URL, a `data:` URI without base64, or the images of the request are too large.
        """
        if not isinstance(url, str) or not url.strip():
            raise invalid(
                "The image has no URL; send an http(s) URL or a data: URI.",
                path,
                "INVALID_IMAGE_URL",
            )
        if url[:64].lstrip()[:5].lower() != "data:":
            image.uri = url
            return
        try:
            image.mime_type, image.data = parse_data_uri(url)
        except ValueError:
            raise invalid(
                "The data: URI does not contain valid base64 data.", path, "INVALID_IMAGE"
            ) from None
        self._left -= len(image.data)
        if self._left < 0:
            raise too_large(
                "The images of the request exceed the maximum total size (--max-media-mib)."
            )


def parse_data_uri(uri: str) -> tuple[str, bytes]:
    """Decodes a `data:` URI, accepting common deviations of clients.

    The base64 marker may be missing, parameters may be in any order, the data may be percent-encoded, wrapped in lines,
    in the URL-safe alphabet and without padding (vllm#28123, QwenLM/Qwen3-VL#202).

    Returns:
        The media type in lower case (may be empty) and the bytes.

    Raises:
        ValueError: There is no comma, no data, or something that is not base64.
    """
    comma = uri.find(",")
    if comma < 0:
        raise ValueError("no comma")
    mime_type = uri[:comma].strip()[5:].partition(";")[0].strip().lower()
    if comma + 1 == len(uri):
        raise ValueError("no data")
    try:
        return mime_type, _decode_strictly(uri, comma + 1)
    except (BinasciiError, ValueError):
        return mime_type, _decode_loosely(uri[comma + 1 :])


def _decode_strictly(text: str, begin: int) -> bytes:
    """Decodes in slices, between which other threads can run."""
    slices = range(begin, len(text), _SLICE_CHARS)
    return b"".join(
        pybase64.b64decode(text[start : start + _SLICE_CHARS], validate=True) for start in slices
    )


def _decode_loosely(text: str) -> bytes:
    data = text.encode("ascii")
    if b"%" in data:
        # Not `urllib.parse.unquote`, which makes an object of 50 bytes of every percent sign.
        if _OTHER_ESCAPE.search(data):
            raise ValueError("not base64")
        for escape, character in _ESCAPES.items():
            data = data.replace(escape, character)
    data = data.translate(None, _WHITESPACE).rstrip(b"=")
    if not data:
        raise ValueError("no data")
    if b"-" in data or b"_" in data:
        data = data.replace(b"-", b"+").replace(b"_", b"/")
    try:
        return pybase64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except BinasciiError as error:
        raise ValueError("not base64") from error
