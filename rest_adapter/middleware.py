"""ASGI middleware for all routes: request ids, the access log, and limits on the body."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenvl.observability import CallContext, current_call, enter_call
from rest_adapter.dialect import dialect_of, error_response
from rest_adapter.errors import ApiError, too_large


_ACCESS_LOG: Final = logging.getLogger("rest_adapter.access")
PROBES: Final = frozenset(("/health", "/ready"))
"""Paths of probes: they need no key and are logged at debug level."""


def response_request_id() -> str:
    """`x-request-id` of the current response: the client's own id, else the request's id."""
    call = current_call()
    assert call is not None
    return call.client_request_id or call.request_id


class RequestLog:
    """Creates the call context of every request, adds `x-request-id`, and writes one access line when it ends."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on the request and observes the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        authorization = dialect_of(scope).authorization_of(headers)
        call = CallContext.from_headers(dict(headers) | {"authorization": authorization or ""})
        enter_call(call)
        status, sent, begin = 500, 0, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                id_header = (b"x-request-id", response_request_id().encode())
                message = {**message, "headers": [*message["headers"], id_header]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            line = {
                "message": "call",
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "bytes": sent,
                "duration_s": round(time.monotonic() - begin, 4),
            }
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            # A route may have set the request's own id from the body.
            _ACCESS_LOG.log(level, line | (current_call() or call).log_fields())


class BodyLimit:
    """Refuses bodies that are too large or too slow, before they are stored.

    The rest of an oversized body is read for a while and discarded, so that the client, which is still sending, gets
    the 413 instead of a reset connection.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on the request with a `receive` that enforces the limits."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_bytes:
            refusal = error_response(scope, await self._too_large(receive, 0))
            await refusal(scope, receive, send)
            return
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        received, more = 0, True

        async def limited() -> Message:
            nonlocal received, more
            if not more:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                text = f"The body was not received within {self._timeout_s:g} s (--body-timeout-s)."
                error = ApiError(408, text, reason="BODY_TIMEOUT")
                raise _closing(error) from None
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
            if received > self._max_bytes:
                raise await self._too_large(receive, received)
            return message

        await self._app(scope, limited, send)

    async def _too_large(self, receive: Receive, received: int) -> ApiError:
        """Reads and discards the body for a while; returns the error for the response."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                more = True
                while more and received <= 2 * self._max_bytes:
                    message = await receive()
                    received += len(message.get("body", b""))
                    more = message.get("more_body", False)
        return _closing(
            too_large(
                f"The body has more than {self._max_bytes // 2**20} MiB, the maximum (--max-body-mib)."
            )
        )


def _closing(error: ApiError) -> ApiError:
    """Closes the connection after the response: the rest of the body must not be read as a request."""
    error.headers["connection"] = "close"
    return error
