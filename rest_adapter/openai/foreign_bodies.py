"""Recognises bodies of other APIs, whose clients would only learn which field of this one is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final


Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Format:
    """A format of requests.

    Attributes:
        name: Whose it is.
        field: The field that tells.
        advice: What to send instead.
        is_in: Whether the value of the field is of this format.
    """

    name: str
    field: str
    advice: str
    is_in: Callable[[Any], bool] = lambda value: value is not None


_FORMATS: Final = (
    _Format(
        "DashScope's own API",
        "input",
        "send 'input.messages' as 'messages', and the fields of 'parameters' beside it",
        lambda value: isinstance(value, dict),
    ),
    _Format("the OpenAI Responses API", "input", "send 'messages', or send it to /v1/responses"),
    _Format(
        "the Gemini API",
        "contents",
        "send 'messages' with 'role' and 'content', and the fields of 'generationConfig' beside it",
    ),
    _Format(
        "text-generation-inference, Sagemaker or the Open Inference Protocol",
        "inputs",
        "send 'messages', and the fields of 'parameters' beside it",
    ),
    _Format(
        "Vertex AI or TensorFlow Serving",
        "instances",
        "send the fields of one instance at top level",
    ),
    _Format("the Cohere API", "chat_history", "send all of it as 'messages'"),
    _Format("the Cohere API", "message", "send it in 'messages'"),
    _Format(
        "the OpenAI Batch API",
        "body",
        "send what 'body' contains",
        lambda value: isinstance(value, dict),
    ),
)
_PROMPT: Final = (
    "'prompt' belongs to /v1/completions; a conversation has 'messages': "
    '[{"role": "user", "content": ...}]'
)
_MESSAGES: Final = "'messages' belong to /v1/chat/completions; a text completion has 'prompt'"


def foreign_format(document: Body, main: str) -> str | None:
    """What is wrong with a body that lacks the main field of its path; None = unknown.

    Args:
        document: The body.
        main: The field: `messages` or `prompt`.
    """
    for known in _FORMATS:
        if known.is_in(document.get(known.field)):
            advice = known.advice if main == "messages" else f"send {main!r}"
            return f"'{known.field}' belongs to {known.name}; here, {advice}"
    if main == "messages" and document.get("prompt") is not None:
        return _PROMPT
    return _MESSAGES if main == "prompt" and document.get("messages") is not None else None
