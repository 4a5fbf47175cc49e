"""The JSON schema of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any

from rest_adapter.json_model import Int32, Items
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.image_parts import read_image_url
from rest_adapter.openai.shapes import ImageObject
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


def parse_completion(document: object) -> tuple[CompletionRequest, list[str]]:
    """Checks a parsed JSON document; as `parse_chat`."""
    request, unknown = parse(CompletionRequest, document)
    for index, value in enumerate(request.images or ()):
        unknown += read_image_url(value, f"images[{index}]")[1]
    return request, unknown
