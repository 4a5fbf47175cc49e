"""The interceptor of every call: who may call, what is read and written, its status and its log line.

It replaces every method by one that handles bytes. So a call is refused before anything of its message is read, a
message is read only when there is room for it, and every read and write has a bound (see `wire`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
from functools import partial
import logging
import time
from typing import Any, Final, TypeAlias

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
import grpc
import grpc.aio

from inference_service.errors import (
    DrainingError,
    InternalError,
    InvalidArgumentError,
    ServiceError,
    UnauthenticatedError,
)
from inference_service.grpc_api import work
from inference_service.grpc_api.call_context import (
    Context,
    call_context,
    has_key,
    this_call,
)
from inference_service.grpc_api.connections import Connections, host_of
from inference_service.grpc_api.packed import Packed
from inference_service.grpc_api.status import DETAILS_KEY, code_of, details_of
from inference_service.grpc_api.wire import Wire, WireLimits, enter_wire
from inference_service.grpc_api.wire_fields import check_fields
from inference_service.metrics.requests import current_request
from qwenvl.errors import BY_REASON
from qwenvl.keys import KeyFile
from qwenvl.observability import enter_call, name_call
from qwenvl.pacing import RefusalPacing
from qwenvl.rpc import NOT_REPEATED


OWN_PREFIX: Final = "/qwenvl.inference.v1."
_ANSWERING_PREFIXES: Final = tuple(
    f"{OWN_PREFIX}{service}/" for service in ("ChatService", "CompletionService", "DecisionService")
)
_GENERATION_PREFIXES: Final = (*_ANSWERING_PREFIXES, f"{OWN_PREFIX}TokenizeService/")
OPEN_PREFIX: Final = "/grpc.health.v1."
"""Probes of a kubelet carry no key."""

_MAX_OPEN_BYTES: Final = 4 * 2**10
"""Maximum size of a message of a caller without a key."""
_DEADLINE_SLACK_S: Final = 0.1
"""How much earlier than here a deadline may pass at the caller, whose clock and network are its own."""

access_logger = logging.getLogger("inference_service.access")
logger = logging.getLogger(__name__)

Handler: TypeAlias = Any
"""A `grpc.RpcMethodHandler`; its types know synchronous methods only."""
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call within the limits.

    Args:
        keys: The known keys; None = no authentication. Health checks need none.
        admit: Refuses a caller whose request could not be admitted now, before it is read.
        limits: Limits on the messages of callers with a key, or of all without authentication.
        open_limits: Limits on the messages of health checks.
        request_timeout_s: Maximum time of a call.
        load: Makes the report of the load at the end of an answer; see `LoadReports.end`.
        connections: Is told which connections are used.
    """

    def __init__(
        self,
        keys: KeyFile | None,
        admit: Callable[[str], None],
        limits: WireLimits,
        open_limits: WireLimits,
        request_timeout_s: float,
        *,
        load: Callable[[bool], bytes],
        connections: Connections,
    ) -> None:
        self._keys = keys
        self._admit = admit
        self._pacing = RefusalPacing()
        self._strangers = RefusalPacing()
        self._limits = limits
        self._open_limits = open_limits
        self._request_timeout_s = request_timeout_s
        self._load = load
        self._connections = connections

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """The method in a form that handles bytes; the decision falls before a message is read."""
        handler = await continuation(handler_call_details)
        if handler is None:  # gRPC answers UNIMPLEMENTED
            return None
        method = handler_call_details.method

        async def run(requests: object, context: Context) -> None:
            del requests  # `context.read` is used instead
            await self._run(method, handler, context)

        return grpc.stream_stream_rpc_method_handler(run)

    async def _run(self, method: str, handler: Handler, context: Context) -> None:
        is_open = method.startswith(OPEN_PREFIX)
        call = call_context(context, self._request_timeout_s)
        enter_call(call)
        endless = is_open and bool(handler.response_streaming)  # a watch
        limits = self._open_limits if is_open else self._limits
        # A name that nobody has checked is none: it could be another one for every message. Nor does a stranger become
        # another by another connection.
        caller = call.caller if self._keys is not None else context.peer()
        caller = host_of(context.peer()) if is_open else caller
        key = call.caller if self._keys is not None and not is_open else None
        unread = partial(self._connections.unread, context.peer(), key)
        wire = Wire(context, caller, limits, None if endless else call.deadline, unread)
        enter_wire(wire)

        async def serve() -> None:
            if is_open:
                await answer()
                return
            await self._check_key(context)
            with self._connections.used(context.peer(), key):
                await answer()

        async def answer() -> None:
            if method.startswith(_ANSWERING_PREFIXES):
                wire.load = self._load  # strangers learn nothing of it
            if method.startswith(_GENERATION_PREFIXES):
                await self._check_admission(call.caller, caller, context.peer())
            max_bytes = _MAX_OPEN_BYTES if is_open else None
            await _serve(handler, context, wire, partial(_parsed, handler, method, max_bytes))
            wire.end()

        try:
            await _answer(method, wire, serve)
        finally:
            wire.close()

    async def _check_admission(self, caller: str, paced: str, peer: str) -> None:
        """Refuses a request before it is read, if it could not be admitted."""
        try:
            self._admit(caller)
        except DrainingError:  # another replica answers at once
            raise
        except ServiceError:
            await self._wait(self._pacing, paced, peer, has_key=True)
            raise
        self._pacing.admitted()

    async def _wait(self, pacing: RefusalPacing, caller: str, peer: str, *, has_key: bool) -> None:
        """Waits before a refusal is answered, as `pacing` has it, if the connection has room for that."""
        with self._connections.waiting(peer, has_key=has_key) as may_wait:
            if may_wait:
                await pacing.wait(caller)
            else:
                pacing.delay_s(caller)  # it counts all the same

    async def _check_key(self, context: Context) -> None:
        if not has_key(context, self._keys):
            peer = context.peer()
            await self._wait(self._strangers, host_of(peer), peer, has_key=False)
            raise UnauthenticatedError(
                "The API key is missing or unknown: send `authorization: Bearer KEY`."
            )


async def _serve(
    handler: Handler, context: Context, wire: Wire, parse: Callable[[bytes], Awaitable[Any]]
) -> None:
    """Reads the request or the requests, calls the method and writes what it answers."""

    async def requests() -> AsyncIterator[Any]:
        while (message := await wire.read()) is not None:
            yield await parse(message)

    if handler.request_streaming:
        arguments = [requests()]
    else:
        message = await wire.read()
        if message is None:
            raise InvalidArgumentError("The call ended without a request.")
        arguments = [await parse(message)]
        del message
    kinds = [
        "stream" if many else "unary"
        for many in (handler.request_streaming, handler.response_streaming)
    ]
    # `pop`, so that this frame does not keep the images of a request that the method has let go.
    answer = getattr(handler, "_".join(kinds))(arguments.pop(), context)
    if not handler.response_streaming:
        response = await answer
        # The servicers of libraries set a status and return nothing.
        if response is not None or not context.code():
            is_packed = isinstance(response, Packed)
            data = response.data if is_packed else handler.response_serializer(response)
            del response  # while its bytes are written
            await wire.write(data)
        return
    async with contextlib.aclosing(answer):
        async for response in answer:
            await wire.write(handler.response_serializer(response))


async def _parsed(handler: Handler, method: str, max_bytes: int | None, message: bytes) -> Any:
    """The request as a protobuf message; large ones are parsed off the event loop."""
    if max_bytes is not None and len(message) > max_bytes:
        raise InvalidArgumentError(
            f"The request has {len(message)} bytes, but at most {max_bytes} are allowed without an API key."
        )
    # The class whose `FromString` it is.
    descriptor: Descriptor = handler.request_deserializer.__self__.DESCRIPTOR

    def parse() -> Any:
        try:
            check_fields(message, descriptor)
            return handler.request_deserializer(message)
        except (DecodeError, UnicodeDecodeError):
            raise InvalidArgumentError(
                f"The request is not a valid {descriptor.full_name}: its bytes are not what protobuf writes."
            ) from None

    request = await work.for_size(len(message), parse)
    spec = getattr(request, "spec", None)
    if method.startswith(OWN_PREFIX) and spec is not None:
        name_call(spec.request_id)
    return request


async def _answer(method: str, wire: Wire, serve: Callable[[], Awaitable[None]]) -> None:
    """Ends a failed call with a status, and writes the access line of this project's methods."""
    code, begin, deadline = grpc.StatusCode.CANCELLED, time.monotonic(), this_call().deadline
    try:
        await serve()
        code = grpc.StatusCode.OK
    except ServiceError as error:
        code = code_of(error)
        _forget_frames(error)
        await _abort(wire, error)
    except grpc.aio.AbortError:  # the method has ended the call itself
        raise
    except asyncio.CancelledError:
        # By gRPC: the caller has disconnected, or its deadline has passed by its own clock.
        if deadline is not None and time.monotonic() >= deadline - _DEADLINE_SLACK_S:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as error:  # a defect, or a panic of a library in Rust; only the log has its details
        logger.exception({"message": "the call failed", **this_call().log_fields()})
        _forget_frames(error)
        internal = InternalError("An internal error occurred.")
        code = code_of(internal)
        await _abort(wire, internal)
    finally:
        if method.startswith(OWN_PREFIX):
            line = {
                "message": "call",
                "method": method,
                "code": code.name,
                "seconds": round(time.monotonic() - begin, 4),
            }
            access_logger.info(line | this_call().log_fields() | current_request().log_fields())


def _forget_frames(error: BaseException) -> None:
    """Lets go of the request: gRPC keeps the exception that ends a call, which refers to this one and its frames."""
    seen: list[BaseException] = []
    pending: BaseException | None = error
    while pending is not None and pending not in seen:
        pending.__traceback__ = None
        seen.append(pending)
        pending = pending.__cause__ or pending.__context__


async def _abort(wire: Wire, error: ServiceError) -> None:
    current_request().failed(error)
    details = details_of(error, this_call())
    trailers: tuple[tuple[str, str | bytes], ...] = (
        (DETAILS_KEY, details),
        *(() if error.repeatable else NOT_REPEATED),
    )
    await wire.abort(code_of(error), error.message, trailers, failed=_is_failure(error))


def _is_failure(error: ServiceError) -> bool:
    """Whether another replica might have answered."""
    return error.reason == "QUEUE_FULL" or BY_REASON[error.reason].http_status >= 500
