"""Translates a response's request to the proto, and the fields in the service's errors back: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import re
from typing import Any, Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from rest_adapter.errors import invalid
from rest_adapter.media import ImageSources
from rest_adapter.openai.constraints import asked_form, form_param
from rest_adapter.openai.field_paths import own_param, plain_param
from rest_adapter.openai.responses.blobs import Unpacker
from rest_adapter.openai.responses.items import AnyItem, read_item, resolved
from rest_adapter.openai.responses.schema import Asked, ResponsesRequest
from rest_adapter.openai.responses.turns import Turn, turns_of
from rest_adapter.openai.sampling import set_options


_MESSAGE: Final = re.compile(r"messages\[(\d+)\](?:\.(.*))?$")
_OF_TOOL: Final = re.compile(r"tools\[(\d+)\](?:\.(\w+))?$")
_TOOL_FIELDS: Final = {"parameters_json_schema": "parameters"}
_PARAMS: Final = {
    "messages": "input",
    "sampling.max_tokens": "max_output_tokens",
    "tool_choice.parallel": "parallel_tool_calls",
}
PREVIOUS: Final = "previous_response_id"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model is to answer.

    Attributes:
        asked: The request.
        items: The caller's items, references resolved.
        history: The items of the responses that it continues.
        turns: All messages: the instructions, earlier turns, and the caller's items.
    """

    asked: Asked
    items: tuple[AnyItem, ...]
    history: tuple[AnyItem, ...]
    turns: list[Turn]


def conversation_of(
    asked: Asked, earlier: Iterable[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]
) -> Conversation:
    """Makes the conversation of a request.

    Args:
        asked: The request.
        earlier: The items of the responses that it continues, in JSON, oldest first.
        found: The items that its references point at, in JSON, by id.

    Raises:
        ApiError: A reference points at nothing, an output is of no call, or there is no message.
    """
    blobs = Unpacker()
    items = tuple(resolved(item, found, blobs) for item in asked.items)
    history = tuple(read_item(document, PREVIOUS, blobs)[0] for document in earlier)
    turns = turns_of([*history, *items])
    if not turns:
        raise invalid("'input' has reasoning alone, but needs a message.", "input")
    if asked.request.instructions:
        turns.insert(0, Turn.of_instructions(asked.request.instructions))
    return Conversation(asked, items, history, turns)


def to_spec(conversation: Conversation, *, max_media_bytes: int) -> chat_pb.ChatCompletionSpec:
    """Converts a conversation to the proto.

    Args:
        conversation: The conversation.
        max_media_bytes: Maximum total bytes of all decoded images.

    Raises:
        ApiError: An image's URI cannot be decoded, the images are too large, or a field cannot be converted.
    """
    asked = conversation.asked
    request = asked.request
    spec = chat_pb.ChatCompletionSpec(request_id=request.request_id or "")
    set_options(spec, request, request.max_output_tokens)
    sources = ImageSources(max_media_bytes)
    for turn in conversation.turns:
        turn.add_to(spec.messages.add(), sources)
    if asked.includes_logprobs:
        spec.logprobs.top_logprobs = request.top_logprobs or 0
    asked.tools.add_to(spec)
    if asked.form.constraint is not None:
        if (other := asked_form(request)) is not None:
            text = f"'{other.path}' asks for a form of the answer, as 'text.format' does: send one of them."
            raise invalid(text, other.path)
        spec.constraint.CopyFrom(asked.form.constraint)
    if (effort := _effort(request)) is not None:
        spec.template.reasoning_effort = effort[0]
    if (switch := _thinking_switch(request)) is not None:
        spec.template.enable_thinking = switch[0]
    return spec


def _effort(request: ResponsesRequest) -> tuple[str, str] | None:
    """How much to reason, and the path of it; None = the template's default."""
    # An option of chat templates only where these have one.
    effort: str | None = getattr(request.chat_template_kwargs, "reasoning_effort", None)
    if effort is not None:
        return effort, "chat_template_kwargs.reasoning_effort"
    options = request.reasoning
    return (options.effort, "reasoning.effort") if options and options.effort else None


def _thinking_switch(request: ResponsesRequest) -> tuple[bool, str] | None:
    """The switch for thinking and its path, the most specific first; None = the template's default."""
    options = request.chat_template_kwargs
    for name in ("enable_thinking", "thinking"):
        if options is not None and (value := getattr(options, name)) is not None:
            return value, f"chat_template_kwargs.{name}"
    if request.enable_thinking is not None:
        return request.enable_thinking, "enable_thinking"
    return None


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """Maps proto fields of one request to fields of its JSON."""

    conversation: Conversation

    def param_of(self, field: str) -> str | None:
        """Turns `spec.messages[1].parts[0].image` into `input[0].content[0].image_url`."""
        path = field.removeprefix("spec.")
        if match := _MESSAGE.match(path):
            return self._message_param(int(match[1]), match[2] or "")
        if match := _OF_TOOL.match(path):
            name = _TOOL_FIELDS.get(match[2] or "", match[2])
            return f"tools[{match[1]}]" + (f".{name}" if name else "")
        if path.startswith("constraint"):
            asked = self.conversation.asked
            own = asked.form.path if asked.form.constraint is not None else None
            return own or form_param(asked.request, path)
        return self._option_param(path) or None

    def _option_param(self, path: str) -> str:
        request = self.conversation.asked.request
        if (param := _PARAMS.get(path)) is not None:
            return param
        if path.startswith("tool_choice"):
            return "tool_choice"
        if path == "template.reasoning_effort" and (effort := _effort(request)):
            return effort[1]
        if path == "template.enable_thinking" and (switch := _thinking_switch(request)):
            return switch[1]
        return own_param(request, path) or plain_param(path)

    def _message_param(self, index: int, rest: str) -> str:
        turns = self.conversation.turns
        if index >= len(turns):
            return "input"
        param = turns[index].param(rest)
        if param.startswith(PREVIOUS):  # the caller does not know the items of the response
            return PREVIOUS
        return own_param(self.conversation.asked.request, rest) or param
