"""The JSON schema of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import Field

from rest_adapter.errors import invalid
from rest_adapter.json_model import ClosedModel, Int32, Items, JsonModel, unknown_fields
from rest_adapter.openai.content import Part
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.openai.validation import parse


_MESSAGE_NEUTRAL: Final = {"audio": (), "function_call": (), "tool_calls": ()}
_MESSAGE_IGNORED: Final = frozenset(("annotations", "reasoning", "reasoning_content"))


class Message(JsonModel):
    """One message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[Part] | None = None
    name: str | None = None
    refusal: str | None = None


class TemplateOptions(ClosedModel):
    """Options of the chat template; a closed list, because they are passed to the template."""

    enable_thinking: bool | None = None


class ChatRequest(AnswerRequest):
    """A request of `/v1/chat/completions`."""

    messages: Annotated[Items[Message], Field(min_length=1)]
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None


def parse_chat(document: object) -> tuple[ChatRequest, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    request, unknown = parse(ChatRequest, document)
    if request.top_logprobs and not request.logprobs:
        raise invalid("'top_logprobs' requires 'logprobs': true.", "top_logprobs")
    for index, message in enumerate(request.messages):
        unknown += _unknown_in_message(message, f"messages[{index}]")
    return request, unknown


def _unknown_in_message(message: Message, path: str) -> Iterator[str]:
    yield from unknown_fields(
        message, unsupported_unless=_MESSAGE_NEUTRAL, ignored=_MESSAGE_IGNORED, path=path
    )
    if isinstance(message.content, list):
        for position, part in enumerate(message.content):
            yield from unknown_fields(part, path=f"{path}.content[{position}]")
