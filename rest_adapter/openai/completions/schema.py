"""The JSON schema of `/v1/completions`."""

from __future__ import annotations

from rest_adapter.json_model import Int32, Items
from rest_adapter.openai.content import ImageUrl
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.validation import parse


class CompletionRequest(AnswerRequest):
    """A request of `/v1/completions`: one prompt or several, each as text or as token ids.

    `images` is an extension: the images of a single prompt, as URLs, in the order of their placeholders in it.
    """

    prompt: str | Items[str] | Items[Int32] | Items[Items[Int32]]
    images: Items[ImageUrl | str] | None = None
    echo: bool | None = None
    logprobs: Int32 | None = None


def parse_completion(document: object) -> tuple[CompletionRequest, list[str]]:
    """Checks a parsed JSON document; as `parse_chat`."""
    return parse(CompletionRequest, document)
