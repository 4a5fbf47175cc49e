"""Interceptors for every call: its context, API keys, error status and access log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
import logging
import time
from typing import Any, TypeAlias

import grpc
import grpc.aio

from inference_service.errors import InternalError, ServiceError, UnauthenticatedError
from inference_service.grpc_api.call_context import Context, call_context
from inference_service.grpc_api.status import DETAILS_KEY, code_of, details_of
from qwenvl.keys import KeyFile
from qwenvl.observability import CallContext, enter_call


OWN_PREFIX = "/qwenvl.inference.v1."
_OPEN_PREFIX = "/grpc.health.v1."  # probes of a kubelet carry no key
_DEADLINE_SLACK_S = 0.1
"""How much earlier than here a deadline may pass at the caller, whose clock and network are its own."""

access_logger = logging.getLogger("inference_service.access")
logger = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not subscriptable at run time
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a known key, health checks excepted.

    Args:
        keys: The known keys.
        request_timeout_s: See `call_context`.
    """

    def __init__(self, keys: KeyFile, request_timeout_s: float) -> None:
        self._keys = keys
        self._request_timeout_s = request_timeout_s

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Continues the call, or answers UNAUTHENTICATED."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN_PREFIX):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        authorization = metadata.get("authorization")
        if self._keys.accepts(authorization if isinstance(authorization, str) else None):
            return handler

        async def refuse(request: object, context: Context) -> None:
            async with _answering(method, request, context, self._request_timeout_s):
                raise UnauthenticatedError(
                    "The API key is missing or unknown: send `authorization: Bearer KEY`."
                )

        return _same_shape(handler, refuse, _as_stream(refuse))


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Adds context, error status and access log to every call of this project's services.

    Args:
        request_timeout_s: See `call_context`.
    """

    def __init__(self, request_timeout_s: float) -> None:
        self._request_timeout_s = request_timeout_s

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the methods of this project's services."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OWN_PREFIX):
            return handler

        async def unary(request: Any, context: Context) -> Any:
            async with _answering(method, request, context, self._request_timeout_s):
                return await handler.unary_unary(request, context)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            async with _answering(method, request, context, self._request_timeout_s):
                responses = handler.unary_stream(request, context)
                async with contextlib.aclosing(responses):
                    async for response in responses:
                        yield response

        return _same_shape(handler, unary, stream)


@contextlib.asynccontextmanager
async def _answering(
    method: str, request: Any, context: Context, request_timeout_s: float
) -> AsyncIterator[None]:
    """Enters a call's context, ends a failed call with a status, and writes the access line."""
    call = call_context(request, context, request_timeout_s)
    enter_call(call)
    code, begin = grpc.StatusCode.CANCELLED, time.monotonic()
    try:
        yield
        code = grpc.StatusCode.OK
    except ServiceError as error:
        code = code_of(error)
        await _abort(context, error, call)
    except Exception:  # a defect: its details go to the log only
        logger.exception({"message": "the call failed", **call.log_fields()})
        internal = InternalError("An internal error occurred.")
        code = code_of(internal)
        await _abort(context, internal, call)
    except asyncio.CancelledError:
        # By gRPC: the caller has disconnected, or its deadline has passed by its own clock.
        if call.deadline is not None and time.monotonic() >= call.deadline - _DEADLINE_SLACK_S:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise
    finally:
        # The ids are passed explicitly: a stream closed by the garbage collector ends outside of its context.
        line = {
            "message": "call",
            "method": method,
            "code": code.name,
            "seconds": round(time.monotonic() - begin, 4),
        }
        access_logger.info(line | call.log_fields())


async def _abort(context: Context, error: ServiceError, call: CallContext) -> None:
    await context.abort(code_of(error), error.message, ((DETAILS_KEY, details_of(error, call)),))


def _as_stream(
    unary: Callable[[Any, Context], Awaitable[Any]],
) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        yield await unary(request, context)

    return stream


def _same_shape(
    handler: Handler,
    unary: Callable[[Any, Context], Awaitable[Any]],
    stream: Callable[[Any, Context], AsyncIterator[Any]],
) -> Handler:
    """A handler with the (de)serialisers of another one."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = stream if handler.response_streaming else unary
    return make(
        behaviour,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
