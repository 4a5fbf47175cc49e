"""Checks API keys on every path except probes and the files of the playground."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from qwenvl.keys import key_of
from qwenvl.pacing import RefusalPacing
from rest_adapter.dialect import error_response
from rest_adapter.dropped import drop_body
from rest_adapter.errors import ApiError, of_reason
from rest_adapter.middleware import PAGES, PROBES


class RequireKey:
    """ASGI middleware that refuses requests without a known key, except probes and pages; repeated ones ever later."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pacing = RefusalPacing()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it with 401."""
        if scope["type"] == "http" and not _is_open(scope) and not scope["state"]["is_known"]:
            host, _ = scope["client"] or ("", 0)
            drop_body(scope["state"])
            await self._pacing.wait(host)
            authorization = scope["state"]["authorization"]
            error = _refusal(has_key=bool(key_of(authorization)))
            await error_response(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    route = scope["app"].state.endpoints.template_of(scope["path"])
    return route in PROBES or route in PAGES


def _refusal(*, has_key: bool) -> ApiError:
    message = "The API key is invalid." if has_key else "An API key is required, but none was sent."
    return of_reason("UNAUTHENTICATED", message)
