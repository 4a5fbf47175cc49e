"""Which web pages may call the API: the origins of CORS, and the defence against pages that do not ask.

A page can send a POST to a local address without asking first, if its content type is that of a form, and its owner can
let the page's own name resolve to a local address (DNS rebinding). Browsers name the page in `origin`.
"""

from __future__ import annotations

from collections.abc import Sequence
import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_adapter.dialect import error_response
from rest_adapter.errors import of_reason


# Pages of this machine; and applications and browser extensions, whose schemes no web page can have.
_LOCAL: Final = (
    r"https?://(?:[\w-]+\.)*+localhost(?::\d+)?",
    r"https?://(?:127(?:\.\d+){3}|0\.0\.0\.0|\[::1?\])(?::\d+)?",
    r"(?!https?:)[a-z][a-z0-9+.-]*://.*",
)
_ENTRY: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
_SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))


def compile_origins(entries: Sequence[str]) -> re.Pattern[str]:
    """Turns the values of `--allowed-origins` into a pattern that matches whole origins.

    Raises:
        ValueError: An entry is not an origin.
    """
    patterns: list[str] = []
    for entry in entries:
        origin = entry.strip().lower().removesuffix("/")
        if origin == "*":
            patterns.append(".*")
        elif origin == "local":
            patterns += _LOCAL
        elif origin == "null":
            patterns.append(origin)
        elif _ENTRY.fullmatch(origin):
            patterns.append(re.escape(origin).replace(r"\*", "[^/]*"))
        elif origin != "none":
            raise ValueError(
                f"{entry!r} is not an origin such as https://app.example:3000, nor local, null, * or none"
            )
    return re.compile("|".join(patterns) or "(?!)", re.IGNORECASE)


class RefuseForeignPages:
    """ASGI middleware that refuses what web pages of other origins send, except harmless methods.

    It is not needed where a key is required, because a foreign page has none.
    """

    def __init__(self, app: ASGIApp, origins: re.Pattern[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it with 403."""
        if scope["type"] == "http" and scope["method"] not in _SAFE_METHODS:
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is not None and not self._is_allowed(origin, headers.get("host", "")):
                whose = "that are files" if origin == "null" else f"of {origin[:200]!r}"
                text = f"Pages {whose} may not call this API (--allowed-origins)."
                error = of_reason("PERMISSION_DENIED", text)
                await error_response(scope, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, origin: str, host: str) -> bool:
        if self._origins.fullmatch(origin):
            return True
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        return page.netloc.lower() == host.lower() and _cannot_be_rebound(page.hostname or "")


def _cannot_be_rebound(name: str) -> bool:
    """Whether no stranger can choose the address of a host: it is an address, or a name of the local network."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name != "" and "." not in name
    return True
