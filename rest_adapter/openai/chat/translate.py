"""Translates the JSON of `/v1/chat/completions` to the proto and back: pure functions."""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Any, Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid
from rest_adapter.media import ImageSources
from rest_adapter.openai import answer
from rest_adapter.openai.chat.schema import Chat, ChatRequest, Message, Turn
from rest_adapter.openai.constraints import form_param
from rest_adapter.openai.field_paths import own_param, plain_param
from rest_adapter.openai.sampling import set_options
from rest_adapter.openai.thinking import reasoning_effort, thinking_switch
from rest_adapter.proto_fields import set_fields


_ROLES: Final = {
    "system": message_pb.ROLE_SYSTEM,
    "developer": message_pb.ROLE_SYSTEM,
    "user": message_pb.ROLE_USER,
    "assistant": message_pb.ROLE_ASSISTANT,
    "tool": message_pb.ROLE_TOOL,
    "function": message_pb.ROLE_TOOL,
}
_CALL_PATH: Final = re.compile(r"messages\[(\d+)\]\.tool_calls\[(\d+)\](?:\.(\w+))?$")
_REASONING_PATH: Final = re.compile(r"messages\[(\d+)\]\.reasoning$")
_PART_PATH: Final = re.compile(r"messages\[(\d+)\](?:\.parts(?:\[(\d+)\](?:\.(.*))?)?)?$")


def to_spec(chat: Chat, *, max_media_bytes: int) -> chat_pb.ChatCompletionSpec:
    """Converts a request to the proto.

    Args:
        chat: The validated JSON.
        max_media_bytes: Maximum total bytes of all decoded images.

    Raises:
        ApiError: An image's URI cannot be decoded, the images are too large, or a field cannot be converted.
    """
    request = chat.request
    spec = chat_pb.ChatCompletionSpec(request_id=request.request_id or "")
    set_options(spec, request, request.max_completion_tokens)
    sources = ImageSources(max_media_bytes)
    for message, turn in zip(request.messages, chat.turns, strict=True):
        _add_message(spec, message, turn, sources)
    chat.tools.add_to(spec)
    if request.logprobs:
        spec.logprobs.top_logprobs = request.top_logprobs or 0
    if request.prompt_logprobs is not None:
        spec.logprobs.prompt_logprobs = request.prompt_logprobs
    set_fields(spec.template, request, ("add_generation_prompt", "continue_final_message"))
    if partial_message(request) is not None:
        spec.template.continue_final_message = True
    if (switch := thinking_switch(request)) is not None:
        spec.template.enable_thinking = switch[0]
    if (effort := reasoning_effort(request)) is not None:
        spec.template.reasoning_effort = effort[0]
    return spec


def _add_message(
    spec: chat_pb.ChatCompletionSpec, message: Message, turn: Turn, sources: ImageSources
) -> None:
    target = spec.messages.add(role=_ROLES[message.role], reasoning=turn.reasoning)
    if target.role == message_pb.ROLE_TOOL:
        # The name is that of the function, which no chat format has beside the call.
        target.tool_call_id = message.tool_call_id or ""
    else:
        target.name = message.name or ""
    for part in turn.content:
        part.add_to(target, sources)
    target.tool_calls.extend(call.call for call in turn.calls)


def partial_message(request: ChatRequest) -> str | None:
    """The path of `partial` or `prefix` of the last message, which the answer is to continue; None = neither is set.

    Raises:
        ApiError: It is set on another message, or contradicts `continue_final_message`.
    """
    last = len(request.messages) - 1
    for index, message in enumerate(request.messages):
        for name in ("partial", "prefix"):
            if not getattr(message, name):
                continue
            path = f"messages[{index}].{name}"
            if index != last or message.role != "assistant":
                raise invalid(
                    f"'{path}' is true, but only the last message, of the role assistant, can be.",
                    path,
                )
            if request.continue_final_message is False:
                raise invalid(f"'{path}' is true, but 'continue_final_message' is false.", path)
            return path
    return None


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """Maps proto fields of one request to fields of its JSON."""

    chat: Chat

    def param_of(self, field: str) -> str | None:
        """Turns `spec.messages[0].parts[1].image` into `messages[0].content[1].image_url.url`."""
        path = field.removeprefix("spec.")
        if not path:
            return None
        if match := _PART_PATH.match(path):
            return self._message_param(match)
        if match := _CALL_PATH.match(path):
            return self._call_param(match)
        if (match := _REASONING_PATH.match(path)) and int(match[1]) < len(self.chat.turns):
            return self.chat.turns[int(match[1])].reasoning_path
        if path.startswith("messages"):
            return path
        return self._spelling(path) or plain_param(path)

    def _spelling(self, path: str) -> str | None:
        """The field by which the caller set one that has several spellings."""
        request = self.chat.request
        if path == "template.enable_thinking" and (switch := thinking_switch(request)) is not None:
            return switch[1]
        if path == "template.reasoning_effort" and (effort := reasoning_effort(request)):
            return effort[1]
        if path == "template.continue_final_message":
            return partial_message(request)
        if path == "sampling.max_tokens" and request.max_completion_tokens is not None:
            return "max_completion_tokens"
        asked = self.chat.tools.param(path) or form_param(request, path)
        return asked or own_param(request, path)

    def _call_param(self, match: re.Match[str]) -> str:
        index, number = int(match[1]), int(match[2])
        if index >= len(self.chat.turns) or number >= len(self.chat.turns[index].calls):
            return match[0]
        return self.chat.turns[index].calls[number].param(match[3] or "")

    def _message_param(self, match: re.Match[str]) -> str:
        index, position, rest = int(match[1]), match[2], match[3] or ""
        path = f"messages[{index}]"
        if ".parts" not in match[0] or not 0 <= index < len(self.chat.turns):
            return path
        parts = self.chat.turns[index].content
        if position is None or int(position) >= len(parts):
            return f"{path}.content"
        own = parts[int(position)].param(rest)
        return own or own_param(self.chat.request, rest) or parts[int(position)].param("")


def completion_id(started: generation_pb.Started) -> str:
    """The id of a response, which contains the request id."""
    return f"chatcmpl-{started.request_id}"


def completion(
    response: chat_pb.CreateChatCompletionResponse, chat: Chat, version: str
) -> dict[str, Any]:
    """OpenAI's `chat.completion`.

    Raises:
        ApiError: The answer was aborted.
    """
    started, request = response.started, chat.request
    document: dict[str, Any] = {
        "id": completion_id(started),
        "object": "chat.completion",
        "created": started.created,
        "model": started.model,
        "choices": [_choice(choice, chat) for choice in response.choices],
        "usage": answer.usage(response.usage),
        "system_fingerprint": answer.fingerprint(started.model, version),
        "effective_max_tokens": answer.max_tokens(started),
    }
    if request.return_token_ids:
        document["prompt_token_ids"] = list(started.prompt_token_ids)
    if request.prompt_logprobs is not None:
        document["prompt_logprobs"] = answer.prompt_logprobs(started.prompt_logprobs)
    return document


def _choice(choice: generation_pb.Choice, chat: Chat) -> dict[str, Any]:
    request = chat.request
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls or chat.tools.required:
        message["content"] = choice.text or None
    if choice.tool_calls:
        message["tool_calls"] = [_call(call) for call in choice.tool_calls]
    document: dict[str, Any] = {
        "index": choice.index,
        "message": message,
        "logprobs": answer.logprobs(choice.logprobs) if request.logprobs else None,
        "finish_reason": answer.finish_reason(choice.finish_reason, named=chat.tools.named),
        "stop_reason": answer.stop_reason(choice.stop_detail),
    }
    if request.return_token_ids:
        document["token_ids"] = list(choice.token_ids)
    if request.grounding:
        document["grounding"] = answer.groundings(choice.groundings)
    return document


def _call(call: message_pb.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.id, "type": "function", "function": function}
