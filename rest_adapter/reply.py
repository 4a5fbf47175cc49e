"""Answers a request with the result of a gRPC call, as one JSON document or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from google.protobuf.message import Message
import grpc
import orjson

from qwenvl.aio import Events
from rest_adapter.disconnect import while_connected
from rest_adapter.errors import from_rpc
from rest_adapter.off_loop import off_loop
from rest_adapter.state import shared
from rest_adapter.stream import EventStream


_Result = TypeVar("_Result")
_Event = TypeVar("_Event")


async def json_reply(
    request: Request,
    work: Coroutine[Any, Any, _Result],
    document_of: Callable[[_Result], object],
    param_of: Callable[[str], str | None],
) -> Response:
    """Awaits a call, and answers with one JSON document.

    Args:
        request: The HTTP request; if its client disconnects, the call is cancelled.
        work: The call.
        document_of: Converts its result to JSON.
        param_of: Turns a proto field path into a path of the request's JSON, for errors.

    Raises:
        ApiError: The call failed.
    """
    result = await result_of(request, work, param_of)
    # Log probabilities of a long answer take seconds.
    content = await off_loop(size_of(result), lambda: orjson.dumps(document_of(result)))
    return Response(content, media_type="application/json")


def size_of(result: object) -> int:
    """About how many bytes the messages have that a call returned."""
    if isinstance(result, Message):
        return result.ByteSize()
    return sum(map(size_of, result)) if isinstance(result, list | tuple) else 0


async def stream_reply(
    request: Request,
    beginning: Coroutine[Any, Any, Events[_Event]],
    render: Callable[[_Event], bytes],
    param_of: Callable[[str], str | None],
) -> Response:
    """Awaits the first event of a call, and answers with its events; see `json_reply` and `EventStream`."""
    return EventStream(
        await result_of(request, beginning, param_of),
        render,
        heartbeat_s=shared(request).settings.sse_heartbeat_s,
        to_error=lambda error: from_rpc(error, param_of),
    )


async def result_of(
    request: Request, work: Coroutine[Any, Any, _Result], param_of: Callable[[str], str | None]
) -> _Result:
    """The result of a call; arguments and errors as for `json_reply`."""
    try:
        return await while_connected(request, work)
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error, param_of) from error
