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
from rest_adapter.openai.chat.schema import ChatRequest, Message
from rest_adapter.openai.content import RefusalPart, TextPart, VideoPart
from rest_adapter.openai.field_paths import plain_param
from rest_adapter.openai.media import image_of, part_suffix, video_of
from rest_adapter.openai.sampling import set_options
from rest_adapter.proto_fields import set_fields


_ROLES: Final = {
    "system": message_pb.ROLE_SYSTEM,
    "developer": message_pb.ROLE_SYSTEM,
    "user": message_pb.ROLE_USER,
    "assistant": message_pb.ROLE_ASSISTANT,
}
_MESSAGE_PATH: Final = re.compile(r"messages\[(\d+)\]\.parts(?:\[(\d+)\](?:\.(.*))?)?$")


def to_spec(request: ChatRequest, *, max_media_bytes: int) -> chat_pb.ChatCompletionSpec:
    """Converts a request to the proto.

    Args:
        request: The validated JSON.
        max_media_bytes: Maximum total bytes of all decoded images.

    Raises:
        ApiError: An image's URI cannot be decoded, the images are too large, or a field cannot be converted.
    """
    spec = chat_pb.ChatCompletionSpec(request_id=request.request_id or "")
    set_options(spec, request, request.max_completion_tokens)
    sources = ImageSources(max_media_bytes)
    for index, message in enumerate(request.messages):
        target = spec.messages.add(role=_ROLES[message.role], name=message.name or "")
        _add_parts(target, message, f"messages[{index}]", sources)
    if request.logprobs:
        spec.logprobs.top_logprobs = request.top_logprobs or 0
    if request.prompt_logprobs is not None:
        spec.logprobs.prompt_logprobs = request.prompt_logprobs
    set_fields(spec.template, request, ("add_generation_prompt", "continue_final_message"))
    if request.chat_template_kwargs is not None:
        set_fields(spec.template, request.chat_template_kwargs, ("enable_thinking",))
    return spec


def _add_parts(
    target: message_pb.Message, message: Message, path: str, sources: ImageSources
) -> None:
    """Appends one proto part per JSON part, so that positions match."""
    content = message.content
    if isinstance(content, str):
        target.parts.add(text=content)
        return
    if message.refusal is not None and not content:
        target.parts.add(refusal=message.refusal)
        return
    if not content:
        raise invalid(
            "The message has no content, but at least one part is required.", f"{path}.content"
        )
    for position, part in enumerate(content):
        part_path = f"{path}.content[{position}]"
        if isinstance(part, TextPart):
            target.parts.add(text=part.text)
        elif isinstance(part, RefusalPart):
            target.parts.add(refusal=part.refusal)
        elif isinstance(part, VideoPart):
            target.parts.add(video=video_of(part, part_path, sources))
        else:
            target.parts.add(image=image_of(part, part_path, sources))


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """Maps proto fields of one request to fields of its JSON."""

    request: ChatRequest

    def param_of(self, field: str) -> str | None:
        """Turns `spec.messages[0].parts[1].image` into `messages[0].content[1].image_url.url`."""
        path = field.removeprefix("spec.")
        if not path:
            return None
        if match := _MESSAGE_PATH.match(path):
            return self._message_param(int(match[1]), match[2], match[3] or "")
        if path.startswith("messages"):
            return path
        path = plain_param(path)
        if path == "max_tokens" and self.request.max_completion_tokens is not None:
            return "max_completion_tokens"
        return path

    def _message_param(self, index: int, position: str | None, rest: str) -> str:
        path = f"messages[{index}]"
        if not 0 <= index < len(self.request.messages):
            return path
        content = self.request.messages[index].content
        if position is None or not isinstance(content, list) or int(position) >= len(content):
            return f"{path}.content"
        return f"{path}.content[{position}]{part_suffix(content[int(position)], rest)}"


def completion_id(started: generation_pb.Started) -> str:
    """The id of a response, which contains the request id."""
    return f"chatcmpl-{started.request_id}"


def completion(
    response: chat_pb.CreateChatCompletionResponse, request: ChatRequest, version: str
) -> dict[str, Any]:
    """OpenAI's `chat.completion`.

    Raises:
        ApiError: The answer was aborted.
    """
    started = response.started
    document: dict[str, Any] = {
        "id": completion_id(started),
        "object": "chat.completion",
        "created": started.created,
        "model": started.model,
        "choices": [_choice(choice, request) for choice in response.choices],
        "usage": answer.usage(response.usage),
        "system_fingerprint": answer.fingerprint(started.model, version),
    }
    if request.return_token_ids:
        document["prompt_token_ids"] = list(started.prompt_token_ids)
    if request.prompt_logprobs is not None:
        document["prompt_logprobs"] = answer.prompt_logprobs(started.prompt_logprobs)
    return document


def _choice(choice: generation_pb.Choice, request: ChatRequest) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    document: dict[str, Any] = {
        "index": choice.index,
        "message": message,
        "logprobs": answer.logprobs(choice.logprobs) if request.logprobs else None,
        "finish_reason": answer.finish_reason(choice.finish_reason),
        "stop_reason": answer.stop_reason(choice.stop_detail),
    }
    if request.return_token_ids:
        document["token_ids"] = list(choice.token_ids)
    if request.grounding:
        document["grounding"] = answer.groundings(choice.groundings)
    return document
