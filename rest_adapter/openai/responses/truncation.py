"""Leaves out the oldest exchanges of a conversation that exceeds the context window, for `truncation: "auto"`.

The service tells how long a prompt is when it refuses it. The instructions, other system messages and everything since
the last message of the user are always kept. An exchange begins with a message of the user and has what answers it; as
long as a function has not returned, it goes on, so that calls are left out with their results, however late these are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeVar

import grpc

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.rpc import RpcFailure, read_error
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses.requests import Prepared


_MAX_TRIES: Final = 8
_IMAGE_BYTES: Final = 2000
"""About as many bytes of text as an image has tokens."""
_ANSWER_SHARE: Final = 4
"""An answer without a limit gets at least this part of the context window."""
_UNKNOWN_EXCESS: Final = 0.5
"""Of a conversation of which not even the least number of tokens is known, this part is left out at a time."""

_Result = TypeVar("_Result")


async def fitting(prepared: Prepared, call: Callable[[], Awaitable[_Result]]) -> _Result:
    """The result of a call with the request, which is shortened if it asks for that and the service finds it too long.

    Args:
        prepared: The request.
        call: Makes the call.

    Raises:
        AioRpcError: The call failed for another reason, or nothing more can be left out.
    """
    tries = _MAX_TRIES if prepared.conversation.asked.request.truncation == "auto" else 1
    for _ in range(tries - 1):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            failure = read_error(error)
            if failure.reason != "CONTEXT_LENGTH_EXCEEDED" or not await off_loop(
                prepared.spec_bytes, _shorten, prepared, failure
            ):
                raise
    return await call()


def _shorten(prepared: Prepared, failure: RpcFailure) -> bool:
    """Leaves out the oldest exchange, and more if the prompt is far too long; False = nothing can be left out."""
    messages, turns = prepared.spec.messages, prepared.conversation.turns
    sizes = [0 if m.role == message_pb.ROLE_SYSTEM else _size(m) for m in messages]
    too_much = int(sum(map(_size, messages)) * _excess(prepared.spec, failure))
    begin = end = _first_exchange(prepared.spec)
    left_out = 0
    for following in _questions(prepared.spec, begin + 1):
        left_out += sum(sizes[end:following])
        end = following
        if left_out >= too_much:
            break
    if end == begin:
        return False
    kept = [
        index
        for index, message in enumerate(messages)
        if not begin <= index < end or message.role == message_pb.ROLE_SYSTEM
    ]
    kept_messages = [messages[index] for index in kept]
    turns[:] = [turns[index] for index in kept]
    del messages[:]
    messages.extend(kept_messages)
    return True


def _excess(spec: chat_pb.ChatCompletionSpec, failure: RpcFailure) -> float:
    """The part of the prompt that is too much, with room for an answer; of a very long text the service tells less."""
    told = failure.metadata
    prompt = _figure(told.get("prompt_tokens", "")) or _figure(told.get("min_prompt_tokens", ""))
    context = _figure(told.get("max_context_tokens", ""))
    if not prompt or not context:
        return _UNKNOWN_EXCESS
    asked = spec.sampling.max_tokens if spec.sampling.HasField("max_tokens") else context
    room = context - min(asked, context // _ANSWER_SHARE)
    return max(0.0, (prompt - room) / prompt)


def _figure(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _first_exchange(spec: chat_pb.ChatCompletionSpec) -> int:
    roles = (index for index, m in enumerate(spec.messages) if m.role != message_pb.ROLE_SYSTEM)
    return next(roles, len(spec.messages))


def _questions(spec: chat_pb.ChatCompletionSpec, begin: int) -> Iterator[int]:
    """Where the exchanges begin that begin at an index or later."""
    returns = _returns(spec.messages)
    returned = 0  # all calls so far, by this index
    for index, message in enumerate(spec.messages):
        if message.role == message_pb.ROLE_USER and begin <= index and returned < index:
            yield index
        returned = max(returned, returns[index])


def _returns(messages: Sequence[message_pb.Message]) -> list[int]:
    """The index of the last result of each message's calls, or its own; an id is that of the newest call with it."""
    returns = list(range(len(messages)))
    newest: dict[str, int] = {}
    for index, message in enumerate(messages):
        newest |= dict.fromkeys((call.id for call in message.tool_calls), index)
        if message.role == message_pb.ROLE_TOOL and message.tool_call_id in newest:
            returns[newest[message.tool_call_id]] = index
    return returns


def _size(message: message_pb.Message) -> int:
    parts = sum(len(part.text.encode()) if part.text else _IMAGE_BYTES for part in message.parts)
    calls = sum(len(call.arguments_json.encode()) for call in message.tool_calls)
    return parts + calls + len(message.reasoning.encode())
