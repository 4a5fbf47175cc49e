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
from rest_adapter.openai import shapes
from rest_adapter.openai.chat.shapes import AskedCall, CallFunction
from rest_adapter.openai.chat.tools import Call, Tools, read_calls, read_tools
from rest_adapter.openai.content import Content, Text, read_content
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.thinking import ThinkingOptions
from rest_adapter.openai.validation import parse
from rest_adapter.openapi.operation import Shape
from rest_adapter.validation import wrong


_MESSAGE_NEUTRAL: Final = {"audio": ()}
_OF_TOOLS: Final = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
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
        "reasoning_details",
        "thinking_blocks",
    )
)
"""Fields of messages that clients send back from answers, or that have no effect here."""

# Some clients send 0 for no log probabilities.
_Logprobs = Annotated[
    bool,
    BeforeValidator(lambda value: False if value == 0 else value),
    Shape(bool | Literal[0]),
]


_Reasoning = str | dict[str, Any] | list[Any] | None


class Message(JsonModel):
    """One message; `content` is read by `read_content`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[Any, Shape(shapes.Content)] = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: Annotated[Any, Shape(_Reasoning)] = None
    reasoning: Annotated[Any, Shape(_Reasoning)] = None
    tool_calls: Annotated[Any, Shape(list[AskedCall] | None)] = None
    function_call: Annotated[Any, Shape(CallFunction | None)] = None
    tool_call_id: str | None = None
    partial: bool | None = None
    prefix: bool | None = None


class TemplateOptions(ClosedModel):
    """Options of the chat template; a closed list, because they are passed to the template."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: str | None = None


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
    reasoning: Annotated[Any, Shape(bool | dict[str, Any] | None)] = None
    tools: Annotated[Any, Shape(shapes.Tools)] = None
    tool_choice: Annotated[Any, Shape(shapes.ToolChoice)] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, Shape(Annotated[list[Any], Field(max_length=0)] | None)] = None
    function_call: Annotated[Any, Shape(Literal["none", "auto"] | None)] = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What is in a message.

    Attributes:
        content: Its parts.
        calls: The calls of an answer.
        reasoning: The reasoning of an answer.
        reasoning_path: The path of the reasoning in the JSON.
    """

    content: tuple[Content, ...]
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    reasoning_path: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """A checked request, the content of each of its messages, and its tools."""

    request: ChatRequest
    turns: tuple[Turn, ...]
    tools: Tools


def parse_chat(document: object) -> tuple[Chat, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    request, unknown = parse(ChatRequest, document)
    chat, names = checked_chat(request)
    return chat, [*unknown, *names]


def checked_chat(request: ChatRequest) -> tuple[Chat, list[str]]:
    """Checks what the models do not; otherwise as `parse_chat`."""
    unknown: list[str] = []
    if request.top_logprobs and not request.logprobs:
        raise invalid(
            f"'top_logprobs' is {request.top_logprobs}, which requires 'logprobs': true.",
            "top_logprobs",
        )
    turns = []
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        unknown += _unknown_in_message(message, path)
        turn, names = _turn(message, path)
        turns.append(turn)
        unknown += names
    tools, names = read_tools({name: getattr(request, name) for name in _OF_TOOLS})
    return Chat(request, tuple(turns), tools), [*unknown, *names]


def _turn(message: Message, path: str) -> tuple[Turn, list[str]]:
    parts, unknown = _content(message, path)
    is_answer = message.role == "assistant"
    calls, names = read_calls(message.tool_calls, message.function_call, path)
    if calls and not is_answer:
        raise invalid(
            f"'{calls[0].path}' is in a {message.role} message, but only assistant messages have calls.",
            calls[0].path,
        )
    reasoning, where = _reasoning(message, path) if is_answer else ("", "")
    return Turn(tuple(parts), tuple(calls), reasoning, where), [*unknown, *names]


def _reasoning(message: Message, path: str) -> tuple[str, str]:
    """The reasoning of an answer, as a field of one of two names or as parts of its content, and its path."""
    for name in ("reasoning_content", "reasoning"):
        value = getattr(message, name)
        if isinstance(value, str) and value:
            return value, f"{path}.{name}"
        if not isinstance(value, str | dict | list) and not asks_for_nothing(value):
            raise wrong(f"{path}.{name}", value, "text")
    parts = message.content if isinstance(message.content, list) else ()
    texts = [part.get("thinking") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str)), f"{path}.content"


def _content(message: Message, path: str) -> tuple[list[Content], list[str]]:
    """The parts of a message; an answer or a result may be empty, as if it were the empty text."""
    is_answer = message.role == "assistant"
    parts, unknown = read_content(message.content, f"{path}.content", is_answer=is_answer)
    if message.refusal and not any(not isinstance(p, Text) or p.text for p in parts):
        return [Text(message.refusal, f"{path}.refusal", is_refusal=True)], unknown
    if not parts and message.role not in ("assistant", "tool", "function"):
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
