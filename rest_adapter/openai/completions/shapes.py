"""The shapes of text completions, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from rest_adapter.openai.shapes import ErrorBody, Grounding, PromptLogprobs, Usage


class TextLogprobs(TypedDict):
    """The log probabilities of a text completion: lists with one entry per token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TextChoice(TypedDict):
    """One completion, or in a stream a piece of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: NotRequired[str | int | None]
    token_ids: NotRequired[list[int]]
    prompt_token_ids: NotRequired[list[int]]
    prompt_logprobs: NotRequired[PromptLogprobs]
    grounding: NotRequired[list[Grounding]]
    effective_max_tokens: NotRequired[int]


class TextCompletion(TypedDict):
    """Complete completions, or in a stream pieces of them; the stream ends with `[DONE]`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: NotRequired[Usage | None]


TextEvent = TextCompletion | ErrorBody
