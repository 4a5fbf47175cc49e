"""Leaves out the oldest exchanges of a conversation that exceeds the context window, for `truncation: "auto"`.

The service tells how long a prompt is when it refuses it. The instructions, other system messages and everything since
the last message of the user are always kept. An exchange begins with a message of the user and has what answers it, so
that no result of a function loses its call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import grpc

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.rpc import RpcFailure, read_error
from rest_adapter.openai.responses.requests import Prepared


_MAX_TRIES: Final = 8
_IMAGE_BYTES: Final = 2000
"""About as many bytes of text as an image has tokens."""
_ANSWER_SHARE: Final = 4
"""An answer without a limit gets at least this part of the context window."""

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
            if not _shorten(prepared, read_error(error)):
                raise
    return await call()


def _shorten(prepared: Prepared, failure: RpcFailure) -> bool:
    """Leaves out the oldest exchange, and more if the prompt is far too long; False = nothing can be left out."""
    if failure.reason != "CONTEXT_LENGTH_EXCEEDED":
        return False
    messages = prepared.spec.messages
    begin = _first_exchange(prepared.spec)
    total = sum(map(_size, messages))
    rest_bytes = total - int(total * _excess(prepared.spec, failure))
    end = begin
    while (following := _next_question(prepared.spec, end)) is not None:
        end = following
        if total - sum(map(_size, messages[begin:end])) <= rest_bytes:
            break
    if end == begin:
        return False
    for index in reversed(range(begin, end)):
        if messages[index].role != message_pb.ROLE_SYSTEM:
            del messages[index]
            del prepared.conversation.turns[index]
    return True


def _excess(spec: chat_pb.ChatCompletionSpec, failure: RpcFailure) -> float:
    """The part of the prompt that is too much, with room for an answer."""
    figures = [failure.metadata.get(name, "") for name in ("prompt_tokens", "max_context_tokens")]
    if not all(figure.isdecimal() for figure in figures):
        return 0.0
    prompt, context = map(int, figures)
    asked = spec.sampling.max_tokens if spec.sampling.HasField("max_tokens") else context
    room = context - min(asked, context // _ANSWER_SHARE)
    return max(0.0, (prompt - room) / max(1, prompt))


def _first_exchange(spec: chat_pb.ChatCompletionSpec) -> int:
    roles = (index for index, m in enumerate(spec.messages) if m.role != message_pb.ROLE_SYSTEM)
    return next(roles, len(spec.messages))


def _next_question(spec: chat_pb.ChatCompletionSpec, begin: int) -> int | None:
    """Where the exchange after the one at `begin` begins; None = that is the last one."""
    for index in range(begin + 1, len(spec.messages)):
        if spec.messages[index].role == message_pb.ROLE_USER:
            return index
    return None


def _size(message: message_pb.Message) -> int:
    parts = sum(len(part.text.encode()) if part.text else _IMAGE_BYTES for part in message.parts)
    calls = sum(len(call.arguments_json.encode()) for call in message.tool_calls)
    return parts + calls + len(message.reasoning.encode())
