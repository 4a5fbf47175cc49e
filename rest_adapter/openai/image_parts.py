"""Reads an image of a message in the spellings of OpenAI, Qwen, DashScope, transformers, LangChain and Anthropic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid, unsupported
from rest_adapter.media import OVERSIZED, ImageSources, no_image
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import wrong


_DETAILS: Final = {
    "auto": message_pb.IMAGE_DETAIL_AUTO,
    "low": message_pb.IMAGE_DETAIL_LOW,
    "high": message_pb.IMAGE_DETAIL_HIGH,
    "original": message_pb.IMAGE_DETAIL_ORIGINAL,
}
_RESIZED: Final = ("resized_height", "resized_width")
_HINTS: Final = ("detail", "min_pixels", "max_pixels", "uuid")
SOURCES: Final = ("image_url", "image", "url", "path", "base64", "data", "source")
"""The fields of a part that may hold its image."""
_OF_OBJECT: Final = frozenset((*_HINTS, *_RESIZED, "transformations", "url", "data"))
_OF_PART: Final = _OF_OBJECT | frozenset(SOURCES)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where an image comes from.

    Attributes:
        text: A URL or base64.
        path: The path of the text in the JSON.
        is_base64: It is base64.
        mime_type: The media type according to the client; may be empty.
    """

    text: object
    path: str
    is_base64: bool = False
    mime_type: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a request.

    Attributes:
        source: Where it comes from.
        detail: How much of the pixel budget it gets.
        hints: `min_pixels`, `max_pixels`, `uuid` and `oversized`, if given.
        paths: The paths of the hints in the JSON.
    """

    source: _Source
    detail: message_pb.ImageDetail
    hints: Mapping[str, Any]
    paths: Mapping[str, str]

    def add_to(self, target: message_pb.Message, sources: ImageSources) -> None:
        """Appends the image to a message; errors as `set`."""
        # In place: adding a finished message would copy its bytes, while no other thread can run.
        self.set(target.parts.add().image, sources)

    def set(self, image: message_pb.Image, sources: ImageSources) -> None:
        """Sets the fields of a proto message.

        Raises:
            ApiError: `sources` refuses the image.
        """
        image.MergeFrom(message_pb.Image(detail=self.detail, **self.hints))
        source = self.source
        if source.is_base64:
            sources.set_base64(image, str(source.text), source.mime_type, source.path)
        else:
            sources.set(image, source.text, source.path)

    def param(self, field: str) -> str:
        """The path in the JSON of the proto field `field` of the part; empty for a hint that it does not have."""
        name = field.removeprefix("image").removeprefix(".")
        return self.paths.get(name, "" if name in _HINTS else self.source.path)


def read_image(part: Fields) -> tuple[Image, list[str]]:
    """Reads a part that is an image.

    Returns:
        The image, and the paths of unknown fields.

    Raises:
        ApiError: It has no source or several, or a field is invalid or not supported.
    """
    names = [name for name in part.values if name in SOURCES and part.has(name)]
    if len(names) > 1:
        raise invalid(
            f"'{part.path}' has several images, in {' and '.join(names)}: send one part for each.",
            part.path_of(names[1]),
        )
    if not names:
        raise _no_source(part)
    [name] = names
    value = part.values[name]
    if isinstance(value, dict):
        inner = Fields(value, part.path_of(name))
        image = _with_hints(_nested_source(inner), (part, inner))
        return image, [*part.unknown(_OF_PART), *inner.unknown(_OF_OBJECT)]
    return _with_hints(_flat_source(part, name), (part,)), [*part.unknown(_OF_PART)]


def read_image_url(value: object, path: str) -> tuple[Image, list[str]]:
    """Reads an image that is a URL or an object with one, outside of a message; otherwise as `read_image`."""
    if value is not None and not isinstance(value, str | dict):
        raise wrong(path, value, "a URL or an object with one")
    if not isinstance(value, dict):
        return _with_hints(_Source(value, path), ()), []
    inner = Fields(value, path)
    return _with_hints(_nested_source(inner), (inner,)), [*inner.unknown(_OF_OBJECT)]


def _no_source(part: Fields) -> Exception:
    """The error for an image without a source, naming the field where it should stand."""
    named = [name for name in SOURCES if name in part.values]
    default = "image" if part.values.get("type") == "image" else "image_url"
    name = named[0] if named else default
    path = part.path_of(name)
    if isinstance(part.values.get(name), dict):
        path += ".url"
    return no_image(path)


def _flat_source(part: Fields, name: str) -> _Source:
    """The source in a field of the part that is not an object."""
    text, path = part.values[name], part.path_of(name)
    is_base64 = name in ("base64", "data")
    if not isinstance(text, str):
        raise wrong(path, text, "base64" if is_base64 else "a URL or an object with one")
    if is_base64:
        mime_type = part.text("mime_type") or part.text("media_type") or ""
        return _Source(text, path, is_base64=True, mime_type=mime_type)
    if name == "path" and "://" not in text:
        local = PurePosixPath(text)
        if not local.is_absolute():
            raise wrong(path, text, "a URL or an absolute path on the server")
        text = local.as_uri()
    return _Source(text, path)


def _nested_source(inner: Fields) -> _Source:
    """The source in an object such as `image_url`, or Anthropic's `source`."""
    if inner.has("file_id"):
        raise unsupported(inner.path_of("file_id"), advice="send the image itself or its URL")
    if inner.has("data") and inner.has("url"):
        raise invalid(
            f"'{inner.path}' has several images, in data and url: send one part for each.",
            inner.path_of("url"),
        )
    if inner.values.get("type") == "base64" or (inner.has("data") and not inner.has("url")):
        mime_type = inner.text("media_type") or inner.text("mime_type") or ""
        path = inner.path_of("data")
        return _Source(inner.text("data") or "", path, is_base64=True, mime_type=mime_type)
    return _Source(inner.text("url") or "", inner.path_of("url"))


def _transformations(holders: tuple[Fields, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """What an image says about its own size, as in Anthropic's `transformations`, and the path of it."""
    part = next((holder for holder in holders if holder.has("transformations")), None)
    if part is None:
        return {}, {}
    values = part.values["transformations"]
    if not isinstance(values, dict):
        raise wrong(part.path_of("transformations"), values, "an object")
    inner = Fields(values, part.path_of("transformations"))
    inner.refuse(values.keys() - {"oversized_image"}, "leave it out")
    oversized, path = inner.text("oversized_image"), inner.path_of("oversized_image")
    if oversized is None:
        return {}, {}
    if oversized not in OVERSIZED:
        raise wrong(path, oversized, " or ".join(OVERSIZED))
    return {"oversized": OVERSIZED[oversized]}, {"oversized": path}


def _with_hints(source: _Source, holders: tuple[Fields, ...]) -> Image:
    """An image whose hints are in the first object that has them."""
    hints, paths = _transformations(holders)
    for holder in holders:
        holder.refuse(_RESIZED, "set 'min_pixels' and 'max_pixels', which keep the aspect ratio")
        for name in holder.values:
            if name not in _HINTS or name in hints or not holder.has(name):
                continue
            read = holder.integer if name.endswith("pixels") else holder.text
            hints[name], paths[name] = read(name), holder.path_of(name)
    detail = hints.pop("detail", None)
    if detail is None:
        return Image(source, message_pb.IMAGE_DETAIL_UNSPECIFIED, hints, paths)
    if detail.strip().lower() not in _DETAILS:
        raise wrong(paths["detail"], detail, "auto, low, high or original")
    return Image(source, _DETAILS[detail.strip().lower()], hints, paths)
