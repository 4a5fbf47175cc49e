"""Who may call: keys from a file, asked for on every path but the probes.

Owns the keys and the middleware that asks for them. Must not know the routes.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rest_adapter.errors import from_reason


OPEN_PATHS = frozenset({"/health", "/ready"})
"""Probes of a cluster carry no key."""


class ApiKeys:
    """The keys of a file with one key per line; the file is read again when it changes.

    Only digests are kept, and every comparison takes the same time (CVE-2025-59425).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        self._reload()

    def accepts(self, authorization: str | None) -> bool:
        """Whether the value of an `authorization` header carries a known key."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(digest, kept) for kept in self._digests]
        return scheme.lower() == "bearer" and any(known)

    def _reload(self) -> None:
        """Keeps the old keys while the file is being replaced."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            lines = self._path.read_text().splitlines()
        except OSError:
            if self._stamp is None:
                raise
            return
        keys = [line.strip() for line in lines if line.strip()]
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        self._stamp = stamp


class AuthMiddleware:
    """Answers 401 to requests without a known key."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request pass, or refuses it before its body is read."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        if self._keys.accepts(Headers(scope=scope).get("authorization")):
            await self._app(scope, receive, send)
            return
        refusal = from_reason("UNAUTHENTICATED", "A valid API key is needed.")
        await refusal.response()(scope, receive, send)
