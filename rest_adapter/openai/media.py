"""Converts images and videos from JSON to the proto, including `data:` URIs: pure functions."""

from __future__ import annotations

from binascii import Error as BinasciiError
import re
from typing import Final
from urllib.parse import unquote_to_bytes

import pybase64

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid
from rest_adapter.openai.content import ImagePart, ImageUrl, Part, VideoPart
from rest_adapter.openai.fields import set_fields


_DETAILS: Final = {
    None: message_pb.IMAGE_DETAIL_UNSPECIFIED,
    "auto": message_pb.IMAGE_DETAIL_AUTO,
    "low": message_pb.IMAGE_DETAIL_LOW,
    "high": message_pb.IMAGE_DETAIL_HIGH,
}
_WHITESPACE: Final = b" \t\r\n\f\v"
_FRAME_PATH: Final = re.compile(r"video\.frames\[(\d+)\]")


def image_of(part: ImagePart, path: str) -> message_pb.Image:
    """Converts an image.

    Raises:
        ApiError: It has no URL, a `data:` URI without base64, or an unknown detail; the error names `path`.
    """
    source = part.image if part.type == "image" and part.image is not None else part.image_url
    settings: ImagePart | ImageUrl = part
    url = source
    if isinstance(source, ImageUrl):
        url = source.url
        if part.detail is None:
            settings = source
    if settings.detail not in _DETAILS:
        suffix = ".image_url.detail" if settings is source else ".detail"
        raise invalid(
            f"'detail' is {str(settings.detail)[:100]!r}, but must be auto, low or high.",
            path + suffix,
        )
    image = message_pb.Image(detail=_DETAILS[settings.detail], uuid=part.uuid or "")
    if isinstance(source, ImageUrl):
        set_fields(image, source, ("min_pixels", "max_pixels"))
    set_fields(image, part, ("min_pixels", "max_pixels"))
    _set_source(image, url, path + _url_suffix(part))
    return image


def video_of(part: VideoPart, path: str) -> message_pb.Video:
    """Converts a video.

    Raises:
        ApiError: A frame has no URL or a `data:` URI without base64; the error names `path`.
    """
    video = message_pb.Video(fps=part.fps)
    for index, url in enumerate(part.video):
        _set_source(video.frames.add(), url, f"{path}.video[{index}]")
    return video


def _set_source(image: message_pb.Image, url: object, path: str) -> None:
    """Sets the bytes of a `data:` URI, or the URI if it is another one."""
    if not isinstance(url, str) or not url.strip():
        raise invalid(
            "The image has no URL; send an http(s) URL or a data: URI.", path, "INVALID_IMAGE_URL"
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


def parse_data_uri(uri: str) -> tuple[str, bytes]:
    """Decodes a `data:` URI, accepting common deviations of clients.

    The base64 marker may be missing, parameters may be in any order, the data may be percent-encoded, wrapped in lines,
    in the URL-safe alphabet and without padding (vllm#28123, QwenLM/Qwen3-VL#202).

    Returns:
        The media type in lower case (may be empty) and the bytes.

    Raises:
        ValueError: There is no comma, no data, or something that is not base64.
    """
    head, comma, text = uri.partition(",")
    if not comma:
        raise ValueError("no comma")
    mime_type = head.strip()[5:].partition(";")[0].strip().lower()
    data = text.encode("ascii")
    if b"%" in data:
        data = unquote_to_bytes(data)
    data = data.translate(None, _WHITESPACE).rstrip(b"=")
    if not data:
        raise ValueError("no data")
    if b"-" in data or b"_" in data:
        data = data.replace(b"-", b"+").replace(b"_", b"/")
    padded = data + b"=" * (-len(data) % 4)
    try:
        return mime_type, pybase64.b64decode(padded, validate=True)
    except BinasciiError as error:
        raise ValueError("not base64") from error


def _url_suffix(part: ImagePart) -> str:
    if part.type == "image" and part.image is not None:
        return ".image"
    return ".image_url.url" if isinstance(part.image_url, ImageUrl) else ".image_url"


def part_suffix(part: Part, rest: str) -> str:
    """The JSON path, relative to a part, of the proto field `rest` in it."""
    if isinstance(part, VideoPart):
        frame = _FRAME_PATH.match(rest)
        return f".video[{frame[1]}]" if frame else ".fps" if rest.endswith(".fps") else ".video"
    if not isinstance(part, ImagePart):
        return f".{part.type.removeprefix('input_')}"
    name = rest.removeprefix("image").removeprefix(".")
    if name not in ("detail", "min_pixels", "max_pixels", "uuid"):
        return _url_suffix(part)
    if getattr(part, name) is None and isinstance(part.image_url, ImageUrl):
        return f".image_url.{name}"
    return f".{name}"
