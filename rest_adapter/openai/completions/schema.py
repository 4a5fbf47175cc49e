"""The JSON schemas of `/v1/completions` and `/v1/completions/render`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from rest_adapter.json_model import Int32, Items, unknown_fields
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.image_parts import read_image_url
from rest_adapter.openai.shapes import ImageObject
from rest_adapter.openai.tokens.schema import RENDER_NEUTRAL
from rest_adapter.openai.validation import parse
from rest_adapter.openapi.operation import Shape


class CompletionRequest(AnswerRequest):
    """A request of `/v1/completions`: one prompt or several, each as text or as token ids.

    `images` is an extension: the images of a single prompt, as URLs, in the order of their placeholders in it.
    """

    prompt: str | Items[str] | Items[Int32] | Items[Items[Int32]]
    images: Items[Annotated[Any, Shape(str | ImageObject)]] | None = None
    echo: bool | None = None
    logprobs: Int32 | None = None


class CompletionRenderRequest(CompletionRequest):
    """A request of `/v1/completions`, whose prompts are wanted instead of answers."""

    return_token_strs: bool | None = None


def parse_completion(document: object) -> tuple[CompletionRequest, list[str]]:
    """Checks a parsed JSON document; as `parse_chat`."""
    request, unknown = parse(CompletionRequest, document)
    return request, [*unknown, *_unknown_of_images(request)]


def parse_render(document: object) -> tuple[CompletionRenderRequest, list[str]]:
    """Checks a parsed JSON document of `/v1/completions/render`; as `parse_chat`."""
    request, unknown = parse(CompletionRenderRequest, document)
    list(unknown_fields(request, unsupported_unless=RENDER_NEUTRAL))
    unknown = [name for name in unknown if name not in RENDER_NEUTRAL]
    return request, [*unknown, *_unknown_of_images(request)]


def _unknown_of_images(request: CompletionRequest) -> Iterator[str]:
    for index, value in enumerate(request.images or ()):
        yield from read_image_url(value, f"images[{index}]")[1]
