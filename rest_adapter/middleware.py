"""ASGI middleware for all routes: request ids, the access log, and the response to a failure that no route expects."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwenvl.keys import KeyFile
from qwenvl.observability import NO_SPAN, CallContext, current_call, enter_call
from rest_adapter.dialect import (
    authorization_of,
    dialect_of,
    error_response,
    response_request_id,
)
from rest_adapter.errors import ApiError, internal, stopping
from rest_adapter.metrics import PENDING_REQUESTS, REQUEST_DURATION, known_method
from rest_adapter.off_loop import work_for
from rest_adapter.traces import begin_http, end_http


_LOG: Final = logging.getLogger(__name__)
_ACCESS_LOG: Final = logging.getLogger("rest_adapter.access")
_MAX_LOGGED_CHARS: Final = 200
PROBES: Final = frozenset(("/health", "/ready"))
"""Paths of probes: they need no key."""
PAGES: Final = frozenset(("/", "/playground/{name}", "/docs", "/openapi.json"))
"""Routes of the playground's files and of the description of the API, which need no key."""
NO_API: Final = PROBES | PAGES | {"/version", "/metrics"}
"""Routes that are no API: they answer at once, whatever the service does; they are logged at debug level."""


class RequestLog:
    """Creates the call context of every request, adds its id to the response, and writes one access line when it ends.

    Args:
        app: The application.
        keys: The known keys, to find the caller; None = every key is as good.
    """

    def __init__(self, app: ASGIApp, keys: KeyFile | None) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on the request and observes the response."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        authorization = authorization_of(scope, self._keys)
        scope.setdefault("state", {})["authorization"] = authorization
        headers = dict(Headers(scope=scope)) | {"authorization": authorization or ""}
        route = scope["app"].state.endpoints.template_of(scope["path"])
        is_api = bool(route) and route not in NO_API
        method = known_method(scope["method"])
        # A stranger could fill the place where traces are kept.
        is_known = self._keys is None or self._keys.accepts(authorization)
        scope["state"]["is_known"] = is_known
        span = begin_http(method, route, headers) if is_api and is_known else NO_SPAN
        call = CallContext.from_headers(headers)
        enter_call(call)
        host, _ = scope.get("client") or ("", 0)
        # Without known keys, a caller could be somebody else with every request.
        scope["state"]["caller"] = host if self._keys is None else call.caller
        work_for(scope["state"]["caller"])
        status, sent, begin = 500, 0, time.monotonic()
        PENDING_REQUESTS.inc(is_api)
        own_header = dialect_of(scope).request_id_header
        id_headers = ("x-request-id", *([own_header] if own_header else []))

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                value = response_request_id().encode()
                ids = [(name.encode(), value) for name in id_headers]
                message = {**message, "headers": [*message["headers"], *ids]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - begin
            PENDING_REQUESTS.dec(is_api)
            REQUEST_DURATION.labels(route, method, str(status)).observe(seconds)
            # A route may have set the request's own id from the body.
            call = current_call() or call
            failure = _reason_of(scope)
            figures = {"status": status, "bytes": sent, "duration_s": round(seconds, 4)}
            level = logging.DEBUG if route in NO_API else logging.INFO
            _ACCESS_LOG.log(level, _line_of(scope) | figures | failure | call.log_fields())
            end_http(span, status, call.request_id, failure.get("reason", ""))


def _line_of(scope: Scope) -> dict[str, Any]:
    return {
        "message": "call",
        "method": scope["method"][:_MAX_LOGGED_CHARS],
        "path": scope["path"][:_MAX_LOGGED_CHARS],
    }


def _reason_of(scope: Scope) -> dict[str, str]:
    """The reason of a failure, and the field it is about."""
    error = scope["state"].get("error")
    if not isinstance(error, ApiError):
        return {}
    return {"reason": error.reason} | ({"field": error.param} if error.param is not None else {})


class Failures:
    """Answers with 500 if a route fails, and with 503 if the server must end before a route does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def watched(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            # Only the end of the server cancels requests. Streams have said so in an event.
            if not is_started:
                await error_response(scope, stopping())(scope, receive, send)
        except Exception as error:
            if is_started:
                raise  # the HTTP server logs it, and cuts the connection
            _LOG.error({"message": f"a request failed: {type(error).__name__}"}, exc_info=error)
            await error_response(scope, internal())(scope, receive, send)
