"""Refuses requests whose end two servers may see in different places (request smuggling)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_adapter.dialect import error_response
from rest_adapter.errors import ApiError


class RefuseAmbiguousFraming:
    """ASGI middleware that refuses two lengths of one body (RFC 9112, 6.1 and 6.3); h11 refuses all other ambiguity."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it and closes the connection."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "transfer-encoding" in headers and (
                "content-length" in headers or scope["http_version"] == "1.0"
            ):
                what = "HTTP/1.0" if scope["http_version"] == "1.0" else "content-length"
                error = ApiError(
                    400,
                    f"The request has transfer-encoding with {what}, so that the end of its body is ambiguous.",
                    reason="MALFORMED_REQUEST",
                    headers={"connection": "close"},
                )
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)
