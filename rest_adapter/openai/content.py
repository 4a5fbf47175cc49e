"""The JSON schema of the parts of a message: text, refusals, images and videos."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from rest_adapter.json_model import Float, Int64, Items, JsonModel


class ImageUrl(JsonModel):
    """The object form of `image_url`."""

    url: str
    detail: str | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None


class TextPart(JsonModel):
    """Text, as in Chat Completions or in Responses."""

    type: Literal["text", "input_text"]
    text: str


class RefusalPart(JsonModel):
    """A refusal of an earlier answer."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(JsonModel):
    """An image; `image_url` for the first two types, `image` as in Qwen's own examples."""

    type: Literal["image_url", "input_image", "image"]
    image_url: ImageUrl | str | None = None
    image: str | None = None
    detail: str | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None
    uuid: str | None = None


class VideoPart(JsonModel):
    """A video as the URLs of its frames, as in Qwen's own examples."""

    type: Literal["video"]
    video: Items[str]
    fps: Float | None = None


Part = Annotated[TextPart | RefusalPart | ImagePart | VideoPart, Field(discriminator="type")]
PART_TYPES: Final = ("text", "input_text", "refusal", "image_url", "input_image", "image", "video")
UNSUPPORTED_PART_TYPES: Final = frozenset(
    ("audio_url", "file", "input_audio", "input_file", "video_url")
)
