"""Interceptors that measure and trace the calls to the inference service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
import time
from typing import Any, Final

import grpc
import grpc.aio

from qwenvl.observability import (
    NO_SPAN,
    Attribute,
    Span,
    begin_request,
    is_tracing,
    with_traceparent,
)
from rest_adapter.metrics import ATTEMPT_DURATION, ATTEMPTS_STARTED


_TRACED: Final = "qwenvl."
"""Health checks are not traced: probes make them."""


def call_metrics() -> Sequence[grpc.aio.ClientInterceptor]:
    """The interceptors of a channel."""
    return (_Unary(), _Stream())


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Measures a call with one response."""
        return await _measured(continuation, client_call_details, request)


class _Stream(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        """Measures a call with a stream of responses."""
        return await _measured(continuation, client_call_details, request)


async def _measured(
    continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
    details: grpc.aio.ClientCallDetails,
    request: Any,
) -> Any:
    name: Any = details.method  # bytes, whatever its type says
    method = (name.decode() if isinstance(name, bytes) else name).removeprefix("/")
    ATTEMPTS_STARTED.labels(method).inc()
    begin_s = time.monotonic()
    span = NO_SPAN
    if is_tracing() and method.startswith(_TRACED):
        told = {Attribute.RPC_SYSTEM: "grpc", Attribute.RPC_METHOD: method}
        span = begin_request(method, told)
        metadata = grpc.aio.Metadata(*with_traceparent(details.metadata, span))
        details = details._replace(metadata=metadata)  # type: ignore[attr-defined]  # a named tuple
    call = await continuation(details, request)

    def ended(_: object) -> None:
        seconds = time.monotonic() - begin_s
        counting.append(asyncio.ensure_future(_count(call, method, seconds, span)))

    counting: list[asyncio.Task[None]] = []  # keeps the task
    call.add_done_callback(ended)
    return call


async def _count(call: Any, method: str, seconds: float, span: Span) -> None:
    code = await call.code()
    ATTEMPT_DURATION.labels(method, code.name).observe(seconds)
    error = "" if code is grpc.StatusCode.OK else code.name
    span.end({Attribute.RPC_STATUS: code.name}, error=error)
