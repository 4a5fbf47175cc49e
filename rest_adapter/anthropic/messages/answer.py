"""Anthropic's JSON of an answer: content blocks, the reason of its end, usage."""

from __future__ import annotations

from typing import Any, Final

from pydantic_core import from_json

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import aborted


SIGNATURE: Final = "qwen-vl-serving"
"""The `signature` of every block of reasoning: clients require one, and send it back unread."""

_STOP_REASONS: Final = {
    usage_pb.FINISH_REASON_LENGTH: "max_tokens",
    usage_pb.FINISH_REASON_CONTEXT_LENGTH: "model_context_window_exceeded",
    usage_pb.FINISH_REASON_TOOL_CALLS: "tool_use",
}


def message_id(started: generation_pb.Started) -> str:
    """The id of an answer, which contains the request id."""
    return f"msg_{started.request_id}"


def message(
    response: chat_pb.CreateChatCompletionResponse,
    *,
    only_prompt: bool = False,
    omits_thinking: bool,
    tells_writes: bool,
) -> dict[str, Any]:
    """Anthropic's `message`.

    Args:
        response: The answer.
        only_prompt: Leave out the answer itself.
        omits_thinking: Leave out the text of the reasoning.
        tells_writes: As in `usage`.

    Raises:
        ApiError: It was aborted.
    """
    [choice] = response.choices
    if only_prompt:
        used = usage(without_answer(response.usage), tells_writes=tells_writes)
        return beginning(response.started, used) | stop_of_nothing(choice.finish_reason)
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append(thinking_block("" if omits_thinking else choice.reasoning, SIGNATURE))
    if choice.text:
        content.append(text_block(choice.text))
    content += [
        tool_use_block(call.id, call.name, arguments(call.arguments_json))
        for call in choice.tool_calls
    ]
    ended = stop(choice.finish_reason, choice.stop_detail, has_calls=bool(choice.tool_calls))
    head = beginning(response.started, usage(response.usage, tells_writes=tells_writes))
    return head | {"content": content or [text_block("")]} | ended


def beginning(started: generation_pb.Started, used: dict[str, Any]) -> dict[str, Any]:
    """An answer without content that has not ended, with its usage."""
    return {
        "id": message_id(started),
        "type": "message",
        "role": "assistant",
        "model": started.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": used,
    }


def text_block(text: str) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": text}


def thinking_block(text: str, signature: str) -> dict[str, Any]:
    """A block of reasoning."""
    return {"type": "thinking", "thinking": text, "signature": signature}


def tool_use_block(call_id: str, name: str, call_input: object) -> dict[str, Any]:
    """A block with a tool call."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": call_input}


def arguments(text: str) -> object:
    """The arguments of a call; of those that the end of the answer has cut off, what is complete."""
    try:
        value = from_json(text or "{}", allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def stop(
    reason: usage_pb.FinishReason, detail: usage_pb.StopDetail, *, has_calls: bool
) -> dict[str, Any]:
    """`stop_reason` and `stop_sequence` of an answer.

    Raises:
        ApiError: It was aborted.
    """
    if reason == usage_pb.FINISH_REASON_ABORTED:
        raise aborted()
    if reason == usage_pb.FINISH_REASON_STOP and detail.WhichOneof("trigger") == "stop_string":
        return {"stop_reason": "stop_sequence", "stop_sequence": detail.stop_string}
    default = "tool_use" if has_calls else "end_turn"
    return {"stop_reason": _STOP_REASONS.get(reason, default), "stop_sequence": None}


def stop_of_nothing(reason: usage_pb.FinishReason) -> dict[str, Any]:
    """As `stop`, of a request that wants no answer."""
    if reason == usage_pb.FINISH_REASON_ABORTED:
        raise aborted()
    return {"stop_reason": "max_tokens", "stop_sequence": None}


def without_answer(value: usage_pb.Usage) -> usage_pb.Usage:
    """The usage of a request that wants no answer."""
    rest = usage_pb.Usage()
    rest.CopyFrom(value)
    rest.completion_tokens, rest.reasoning_tokens = 0, 0
    return rest


def usage(value: usage_pb.Usage, *, tells_writes: bool) -> dict[str, Any]:
    """Anthropic's `usage`: the prompt is the sum of its three kinds of input tokens.

    Args:
        value: The tokens.
        tells_writes: Tell those that were added to the prefix cache apart from the other input tokens.
    """
    written = value.cache_write_tokens if tells_writes else 0
    return {
        "input_tokens": value.prompt_tokens - value.cached_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": value.cached_tokens,
        "output_tokens": value.completion_tokens,
        "output_tokens_details": {"thinking_tokens": value.reasoning_tokens},
    }
