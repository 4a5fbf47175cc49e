"""Refuses requests that h11 accepts although their end or their version is not clear."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_adapter.dialect import error_response
from rest_adapter.errors import ApiError


class RefuseUnclearFraming:
    """ASGI middleware that refuses bodies with two lengths, which two servers may end at different places.

    Behind a gateway the rest of such a body would be another request (RFC 9112, 6.1, 6.3 and 11.2).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it and closes the connection."""
        error = _find_error(scope) if scope["type"] == "http" else None
        if error is not None:
            error.headers["connection"] = "close"
            await error_response(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _find_error(scope: Scope) -> ApiError | None:
    version = scope["http_version"]
    if not version.startswith("1."):
        text = f"HTTP/{version} is not spoken here, but HTTP/1.1."
        return ApiError(505, text, reason="MALFORMED_REQUEST")
    headers = Headers(scope=scope)
    if "transfer-encoding" in headers and (version == "1.0" or "content-length" in headers):
        other = "HTTP/1.0" if version == "1.0" else "content-length"
        text = f"The end of the body is not clear: the request has transfer-encoding and {other}."
        return ApiError(400, text, reason="MALFORMED_REQUEST")
    return None
