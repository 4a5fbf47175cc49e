"""The shapes of tokens and of rendered prompts, for the OpenAPI document."""

from __future__ import annotations

from typing_extensions import TypedDict

from rest_adapter.openai.shapes import Usage
from rest_adapter.rendered_shapes import Rendered


class Tokens(TypedDict):
    """The tokens of a text or of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Texts(TypedDict):
    """The text of token ids, or one for each list of them."""

    prompt: str | list[str]


class RenderedPrompt(Rendered):
    """The prompt of a request, exactly as generation would use it."""

    usage: Usage
