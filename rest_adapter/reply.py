"""Answers a request with the result of a gRPC call, as one JSON document or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
import time
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

from fastapi import Request, Response
from google.protobuf.message import Message
import grpc
import orjson

from qwenvl.aio import Events
from rest_adapter.body import RequestBody, body_of
from rest_adapter.disconnect import while_connected
from rest_adapter.errors import ApiError, from_rpc, too_large
from rest_adapter.off_loop import off_loop
from rest_adapter.paced import PacedResponse
from rest_adapter.state import shared
from rest_adapter.stream import EventStream


FREE_BYTES: Final = 2**18
"""Answers up to this size do not count as memory, so that they are sent whatever the bodies of requests take."""

_ROOM_TIMEOUT_S: Final = 5.0
"""So long a large answer waits until others have been read: it has been computed, and would be again."""

_ROOM_POLL_S: Final = 0.05
_JSON_BYTES_PER_BYTE: Final = 4
"""Log probabilities have some four times the bytes of their message in JSON; no more is taken than for a body."""
_COPIES: Final = 3
_JSON: Final = "application/json"
_Result = TypeVar("_Result")
_Event = TypeVar("_Event")


@runtime_checkable
class Sized(Protocol):
    """What a call returned, if that is not a message."""

    @property
    def num_bytes(self) -> int:
        """About how many bytes it holds."""
        ...


async def json_reply(
    request: Request,
    work: Coroutine[Any, Any, _Result],
    document_of: Callable[[_Result], object],
    param_of: Callable[[str], str | None],
    *,
    repeated_bytes: int = 0,
    collected: CollectedAnswers | None = None,
) -> Response:
    """Awaits a call, and answers with one JSON document.

    Args:
        request: The HTTP request; if its client disconnects, the call is cancelled.
        work: The call.
        document_of: Converts its result to JSON.
        param_of: Turns a proto field path into a path of the request's JSON, for errors.
        repeated_bytes: About how many bytes of the request the document repeats.
        collected: What has counted the results of several calls that `work` collects; None = it is one call.

    Raises:
        ApiError: The call failed, or there was no memory for its result for some seconds.
    """
    result = await result_of(request, work, param_of)
    if collected is None:
        size = size_of(result) + repeated_bytes
        await hold_answer(request, size)
    else:
        size = collected.num_bytes
    # Log probabilities of a long answer take seconds.
    content = await off_loop(size, lambda: orjson.dumps(document_of(result)))
    if len(content) <= FREE_BYTES:
        return Response(content, media_type=_JSON)
    body = body_of(request)
    await _hold_instead(body, len(content))
    return PacedResponse(content, body, media_type=_JSON)


async def hold_answer(request: Request, num_bytes: int) -> None:
    """Counts what a large answer takes while it is converted, in place of the body, which has been answered.

    Raises:
        ApiError: There was no memory for it for some seconds.
    """
    if num_bytes > FREE_BYTES:
        body = body_of(request)
        await _hold_instead(body, min(_JSON_BYTES_PER_BYTE * num_bytes, body.max_bytes))


async def _hold_instead(body: RequestBody, num_bytes: int) -> None:
    """Takes memory for an answer in place of all that its request has taken."""
    body.release()
    await _take_when_free(body, num_bytes, _ROOM_TIMEOUT_S)


async def _take_when_free(body: RequestBody, num_bytes: int, timeout_s: float) -> None:
    """Takes memory for an answer, for which it waits."""
    until_s = time.monotonic() + timeout_s
    while True:
        try:
            body.take_for_answer(num_bytes)
        except ApiError:
            if time.monotonic() >= until_s:
                raise
            await asyncio.sleep(_ROOM_POLL_S)
        else:
            return


class CollectedAnswers:
    """The memory of the results of several calls of one request, which are held until the last one has come.

    Each of them is bounded by the service, but all together only here. They count beside the body, which calls that
    have not begun still need.

    Attributes:
        num_bytes: About how many bytes the results have.

    Args:
        body: The body of the request.
    """

    def __init__(self, body: RequestBody) -> None:
        self.num_bytes = 0
        self._body = body
        self._asked_bytes = 0
        self._waiting_bytes = 0

    async def hold(self, answer: object) -> None:
        """Counts a result that has come, as what it takes until it has been converted.

        Raises:
            ApiError: There was no memory for it for some seconds, or there will never be; or too many others wait, too.
        """
        self.num_bytes += size_of(answer)
        if self.num_bytes <= FREE_BYTES:
            return
        largest_bytes = self._body.largest_answer_bytes
        if _JSON_BYTES_PER_BYTE * self.num_bytes > largest_bytes:
            mib = largest_bytes // _JSON_BYTES_PER_BYTE >> 20
            raise too_large(
                f"The answers to all parts of this request have more than {mib} MiB together, for which there is no"
                " memory (--body-budget-mib); send fewer prompts or lists in one request."
            )
        count = _JSON_BYTES_PER_BYTE * self.num_bytes - self._asked_bytes
        # What waits is in memory without being counted: not much more of it than a body may have.
        is_much = self._waiting_bytes > self._body.max_bytes
        self._asked_bytes += count
        self._waiting_bytes += count
        await _take_when_free(self._body, count, 0.0 if is_much else _ROOM_TIMEOUT_S)
        self._waiting_bytes -= count


class AnswerMemory:
    """The memory of an answer that grows while it is streamed.

    Args:
        take: Takes bytes of the answer until the end of the request.
    """

    def __init__(self, take: Callable[[int], None]) -> None:
        self._take = take
        self._taken = 0

    def hold(self, num_bytes: int) -> None:
        """Notes how many bytes are held now, and takes some more if they are many.

        Raises:
            ApiError: There is no memory for them now.
        """
        # Each of the last events has all of it once more.
        wanted = _COPIES * num_bytes
        if wanted > max(FREE_BYTES, self._taken):
            count = wanted + FREE_BYTES - self._taken
            self._take(count)
            self._taken += count


def size_of(result: object) -> int:
    """About how many bytes something has that a call returned."""
    if isinstance(result, Message):
        return result.ByteSize()
    if isinstance(result, Sized):
        return result.num_bytes
    if isinstance(result, str):
        return len(result)
    return sum(map(size_of, result)) if isinstance(result, list | tuple) else 0


async def stream_reply(
    request: Request,
    beginning: Coroutine[Any, Any, Events[_Event]],
    render: Callable[[_Event], bytes],
    param_of: Callable[[str], str | None],
    size_of_event: Callable[[_Event], int] = size_of,
) -> Response:
    """Awaits the first event of a call, and answers with its events; see `json_reply` and `EventStream`."""
    memory = AnswerMemory(body_of(request).take_for_answer)

    def counted(event: _Event) -> int:
        size = size_of_event(event)
        memory.hold(size)
        return size

    return EventStream(
        await result_of(request, beginning, param_of),
        render,
        heartbeat_s=shared(request).settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, param_of),
        size_of=counted,
    )


async def result_of(
    request: Request, work: Coroutine[Any, Any, _Result], param_of: Callable[[str], str | None]
) -> _Result:
    """The result of a call; arguments and errors as for `json_reply`."""
    try:
        return await while_connected(request, work)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, param_of) from error
