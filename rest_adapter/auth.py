"""Who may call: bearer keys, checked on every route that is not a probe.

Owns the check.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from qwenvl.errors import BY_REASON
from qwenvl.keys import KeyFile
from rest_adapter.errors import ApiError, of_mapping
from rest_adapter.middleware import PROBES, header_of, send_error


class RequireKey:
    """ASGI middleware that lets nothing but probes pass without a key."""

    def __init__(self, app: ASGIApp, keys: KeyFile) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it with 401."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            authorization = header_of(scope, b"authorization")
            if not self._keys.accepts(authorization):
                has_key = bool((authorization or "").partition(" ")[2])
                await send_error(send, _refusal(has_key=has_key))
                return
        await self._app(scope, receive, send)


def _refusal(*, has_key: bool) -> ApiError:
    message = "The API key is wrong." if has_key else "An API key is needed."
    error = of_mapping(BY_REASON["UNAUTHENTICATED"], message)
    error.headers["www-authenticate"] = "Bearer"
    return error
