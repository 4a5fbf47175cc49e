"""Interceptors that measure the calls to the inference service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
import time
from typing import Any

import grpc
import grpc.aio

from rest_adapter.metrics import ATTEMPT_DURATION, ATTEMPTS_STARTED


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
    call = await continuation(details, request)

    def ended(_: object) -> None:
        seconds = time.monotonic() - begin_s
        counting.append(asyncio.ensure_future(_count(call, method, seconds)))

    counting: list[asyncio.Task[None]] = []  # keeps the task
    call.add_done_callback(ended)
    return call


async def _count(call: Any, method: str, seconds: float) -> None:
    code = await call.code()
    ATTEMPT_DURATION.labels(method, code.name).observe(seconds)
