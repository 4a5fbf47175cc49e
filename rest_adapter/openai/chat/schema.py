"""The JSON schema of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from rest_adapter.errors import invalid, unsupported
from rest_adapter.json_model import (
    ClosedModel,
    Count,
    Int32,
    Items,
    JsonModel,
    asks_for_nothing,
    unknown_fields,
)
from rest_adapter.json_text import shown
from rest_adapter.openai.content import Content, Text, read_content
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.thinking import ThinkingOptions
from rest_adapter.openai.validation import parse


_MESSAGE_NEUTRAL: Final = {"audio": (), "function_call": (), "tool_call_id": (), "tool_calls": ()}
_CONTENT_NEUTRAL: Final = (
    "attachments",
    "experimental_attachments",
    "file",
    "files",
    "image",
    "image_url",
    "image_urls",
    "images",
    "parts",
    "video",
    "videos",
)
"""Fields of messages that hold content in other APIs, where it would be lost here."""
_MESSAGE_IGNORED: Final = frozenset(
    (
        "annotations",
        "cache_control",
        "extra_content",
        "id",
        "provider_specific_fields",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "thinking_blocks",
    )
)
"""Fields of messages that clients send back from answers, or that have no effect here."""

# Some clients send 0 for no log probabilities.
_Logprobs = Annotated[bool, BeforeValidator(lambda value: False if value == 0 else value)]


class Message(JsonModel):
    """One message; `content` is read by `read_content`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Any = None
    name: str | None = None
    refusal: str | None = None
    partial: bool | None = None
    prefix: bool | None = None


class TemplateOptions(ClosedModel):
    """Options of the chat template; a closed list, because they are passed to the template."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(AnswerRequest):
    """A request of `/v1/chat/completions`."""

    messages: Annotated[Items[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: _Logprobs | None = None
    top_logprobs: Int32 | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    enable_thinking: bool | None = None
    thinking: bool | ThinkingOptions | None = None
    reasoning_effort: str | None = None
    reasoning: Any = None


@dataclass(frozen=True, slots=True)
class Chat:
    """A checked request, and the content of each of its messages."""

    request: ChatRequest
    contents: tuple[tuple[Content, ...], ...]


def parse_chat(document: object) -> tuple[Chat, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    request, unknown = parse(ChatRequest, document)
    if request.top_logprobs and not request.logprobs:
        raise invalid(
            f"'top_logprobs' is {request.top_logprobs}, which requires 'logprobs': true.",
            "top_logprobs",
        )
    contents = []
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        unknown += _unknown_in_message(message, path)
        parts, names = _content(message, path)
        contents.append(tuple(parts))
        unknown += names
    return Chat(request, tuple(contents)), unknown


def _content(message: Message, path: str) -> tuple[list[Content], list[str]]:
    """The parts of a message; an answer may be empty, as if it were the empty text."""
    is_answer = message.role == "assistant"
    parts, unknown = read_content(message.content, f"{path}.content", is_answer=is_answer)
    if message.refusal and not any(not isinstance(p, Text) or p.text for p in parts):
        return [Text(message.refusal, f"{path}.refusal", is_refusal=True)], unknown
    if not parts and not is_answer:
        raise invalid(
            f"'{path}.content' is {shown(message.content)}, but a {message.role} message needs text or parts.",
            f"{path}.content",
        )
    return parts or [Text("", f"{path}.content")], unknown


def _unknown_in_message(message: Message, path: str) -> Iterator[str]:
    for name, value in (message.__pydantic_extra__ or {}).items():
        if name in _CONTENT_NEUTRAL and not asks_for_nothing(value):
            raise unsupported(f"{path}.{name}", value, "send it as a part of 'content'")
    yield from unknown_fields(
        message,
        unsupported_unless=_MESSAGE_NEUTRAL,
        ignored=(*_MESSAGE_IGNORED, *_CONTENT_NEUTRAL),
        path=path,
    )
