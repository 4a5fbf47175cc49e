"""Converts images and videos from OpenAI's JSON to the proto."""

from __future__ import annotations

import re
from typing import Final

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid
from rest_adapter.media import ImageSources
from rest_adapter.openai.content import ImagePart, ImageUrl, Part, VideoPart
from rest_adapter.proto_fields import set_fields


_DETAILS: Final = {
    None: message_pb.IMAGE_DETAIL_UNSPECIFIED,
    "auto": message_pb.IMAGE_DETAIL_AUTO,
    "low": message_pb.IMAGE_DETAIL_LOW,
    "high": message_pb.IMAGE_DETAIL_HIGH,
}
_FRAME_PATH: Final = re.compile(r"video\.frames\[(\d+)\]")


def image_of(part: ImagePart, path: str, sources: ImageSources) -> message_pb.Image:
    """Converts an image.

    Raises:
        ApiError: Its URL is refused by `sources`, or it has an unknown detail; the error names `path`.
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
    sources.set(image, url, path + _url_suffix(part))
    return image


def video_of(part: VideoPart, path: str, sources: ImageSources) -> message_pb.Video:
    """Converts a video.

    Raises:
        ApiError: The URL of a frame is refused by `sources`; the error names `path`.
    """
    video = message_pb.Video(fps=part.fps)
    for index, url in enumerate(part.video):
        sources.set(video.frames.add(), url, f"{path}.video[{index}]")
    return video


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
