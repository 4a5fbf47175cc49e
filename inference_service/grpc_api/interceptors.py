"""What happens around every call: access, errors, one log line.

Owns the order of these and the wrapping of handlers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
from contextvars import ContextVar
import hashlib
import json
import logging
import time
from typing import Any, Self, TypeAlias
import uuid

import grpc
import grpc.aio

from inference_service.errors import InternalError, ServiceError, UnauthenticatedError
from inference_service.grpc_api.status import DETAILS_KEY, code_of, details_of
from qwenvl.keys import KeyFile


OWN_PREFIX = "/qwenvl.inference.v1."
_OPEN_PREFIX = "/grpc.health.v1."  # probes of a kubelet carry no key

request_id_of_call: ContextVar[str] = ContextVar("request_id_of_call")
"""The id of the call under way: the request's own, else of the metadata `x-request-id`, else made here."""

caller_of_call: ContextVar[str] = ContextVar("caller_of_call")
"""Who makes the call under way: a digest of its key. Without keys everybody is one caller, unless they send some."""

logger = logging.getLogger("inference_service.access")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not subscriptable at run time
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Context = grpc.aio.ServicerContext[Any, Any]


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a known key, health checks excepted."""

    def __init__(self, keys: KeyFile) -> None:
        self._keys = keys

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Lets the call pass, or answers UNAUTHENTICATED in the shape of its method."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_PREFIX):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        authorization = metadata.get("authorization")
        if self._keys.accepts(authorization if isinstance(authorization, str) else None):
            return handler

        async def refuse(request: object, context: Context) -> None:
            with _Line(handler_call_details.method, request, context) as line:
                await line.abort(UnauthenticatedError("A valid API key is needed."))

        return _same_shape(handler, refuse, _as_stream(refuse))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns `ServiceError` into a status with details, and writes one log line per call."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wraps the methods of our own services."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OWN_PREFIX):
            return handler

        async def unary(request: Any, context: Context) -> Any:
            with _Line(method, request, context) as line:
                try:
                    return await handler.unary_unary(request, context)
                except ServiceError as error:
                    await line.abort(error)
                except Exception as error:  # noqa: BLE001 - the last line of defence
                    await line.abort_unexpected(error)

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            with _Line(method, request, context) as line:
                try:
                    responses = handler.unary_stream(request, context)
                    async with contextlib.aclosing(responses):
                        async for response in responses:
                            yield response
                except ServiceError as error:
                    await line.abort(error)
                except Exception as error:  # noqa: BLE001 - the last line of defence
                    await line.abort_unexpected(error)

        return _same_shape(handler, unary, stream)


class _Line:
    """The log line of one call: no prompt, no URL, no key."""

    def __init__(self, method: str, request: Any, context: Context) -> None:
        self._method = method
        self._context = context
        self._code = "OK"
        spec = getattr(request, "spec", None)
        metadata = dict(context.invocation_metadata() or ())
        named = getattr(spec, "request_id", "") or metadata.get("x-request-id")
        self._request_id = str(named or f"req-{uuid.uuid4().hex}")[:128]
        request_id_of_call.set(self._request_id)
        authorization = metadata.get("authorization", "")
        caller_of_call.set(hashlib.sha256(str(authorization).encode()).hexdigest())
        self._begin = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._code == "OK":
            self._code = "CANCELLED"
        fields = {
            "method": self._method,
            "code": self._code,
            "request_id": self._request_id,
            "seconds": round(time.monotonic() - self._begin, 4),
        }
        logger.info(json.dumps(fields))

    async def abort(self, error: ServiceError) -> None:
        """Ends the call with the error's status."""
        self._code = code_of(error).name
        await _abort(self._context, error, self._request_id)

    async def abort_unexpected(self, error: BaseException) -> None:
        """Ends the call as INTERNAL; what happened goes to the log only."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        logger.error("request %s failed", self._request_id, exc_info=error)
        await self.abort(InternalError("An internal error occurred."))


async def _abort(context: Context, error: ServiceError, request_id: str) -> None:
    trailer = ((DETAILS_KEY, details_of(error, request_id)),)
    await context.abort(code_of(error), error.message, trailer)


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
