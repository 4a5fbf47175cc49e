"""Understands paths and methods as clients write them, and explains those that are not served."""

from __future__ import annotations

from collections.abc import Iterable
import re
from typing import Final

from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_adapter.errors import ApiError
from rest_adapter.other_apis import other_api_of


_ORIGIN: Final = re.compile(r"https?://[^/]*", re.IGNORECASE)
_SLASHES: Final = re.compile("/{2,}")
_MAX_SHOWN: Final = 200
_MAX_PARTS: Final = 8


def tidy(path: str) -> str:
    """The path without repeated and trailing slashes, and without the origin that a proxy may send with it."""
    path = "/" + _ORIGIN.sub("", path, count=1) if _ORIGIN.match(path) else path
    path = _SLASHES.sub("/", path)
    return path if path == "/" else path.removesuffix("/")


class TidyPaths:
    """ASGI middleware that tidies the path, as clients join base addresses and paths in every way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with the tidied path."""
        if scope["type"] == "http":
            scope = {**scope, "path": tidy(scope["path"])}
        await self._app(scope, receive, send)


class HeadAsGet:
    """ASGI middleware that routes HEAD as GET; the HTTP server leaves out the body of the response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class AnswerOptions:
    """ASGI middleware that answers OPTIONS with the methods of a path, or of all for `*` (RFC 9110, 9.3.7)."""

    def __init__(self, app: ASGIApp, endpoints: Endpoints) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request, or passes it on."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            methods = self._endpoints.methods_of(scope["path"])
            if methods:
                await Response(status_code=204, headers={"allow": methods})(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Endpoints:
    """What is served, for explanations.

    Args:
        prefixes: The prefixes of the dialects, such as `/v1`.
        routes: All routes.

    Attributes:
        routes: Those that are served.
    """

    def __init__(self, prefixes: Iterable[str], routes: Iterable[BaseRoute]) -> None:
        self._prefixes = tuple(prefixes)
        self.routes = tuple(route for route in routes if isinstance(route, APIRoute))
        self._text = ", ".join(
            f"{' or '.join(sorted(route.methods or ()))} {route.path_format}"
            for route in self.routes
        )

    def explain_path(self, method: str, path: str) -> ApiError:
        """The error for a path that is not served: 400 if it belongs to another API, else 404."""
        shown = f"{method} {path[:_MAX_SHOWN]}"
        if api := other_api_of(path):
            text = f"{shown} is of the {api}, which is not served here. Served are: {self._text}."
            return ApiError(400, text, reason="UNSUPPORTED_API")
        if right := self._right_path(path):
            text = f"{shown} does not exist; the right path is {right[:_MAX_SHOWN]}."
        else:
            text = f"{shown} does not exist. Served are: {self._text}."
        return ApiError(404, text, reason="NOT_FOUND")

    def explain_method(self, method: str, path: str) -> ApiError:
        """The error for a path that is served, but not with this method."""
        if other_api_of(path):
            return self.explain_path(method, path)
        allowed = self.methods_of(path)
        useful = allowed.replace("OPTIONS, ", "").replace(", OPTIONS", "")
        text = f"{path[:_MAX_SHOWN]} does not support {method}, but {useful}."
        return ApiError(405, text, reason="METHOD_NOT_ALLOWED", headers={"allow": allowed})

    def methods_of(self, path: str) -> str:
        """The methods of a served path for `allow`, or of all of them for `*`; empty = it is not served."""
        routes = (r for r in self.routes if path == "*" or r.path_regex.match(path))
        methods = {method for route in routes for method in route.methods or ()}
        if not methods:
            return ""
        also = {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
        return ", ".join(sorted(methods | also))

    def template_of(self, path: str) -> str:
        """The template of the served path, such as `/v1/models/{name}`; empty = it is not served."""
        found = (route.path_format for route in self.routes if route.path_regex.match(path))
        return next(found, "")

    def _right_path(self, path: str) -> str | None:
        """The served path that a client meant, if it left out the prefix or put something before it."""
        parts = path.strip("/").split("/")
        for begin in range(max(0, len(parts) - _MAX_PARTS), len(parts)):
            tail = "/" + "/".join(parts[begin:])
            for candidate in (tail, *(prefix + tail for prefix in self._prefixes)):
                if any(route.path_regex.match(candidate) for route in self.routes):
                    return candidate
        return None
