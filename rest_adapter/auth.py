"""Who may call: bearer keys from a file, checked on every route that is not a probe.

Owns the keys and the check. Must not know routes, except that probes carry no key: a route that somebody adds is
guarded without doing anything (CVE-2025-59425 was the opposite).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from qwenvl.errors import BY_REASON
from rest_adapter.errors import ApiError, of_mapping
from rest_adapter.middleware import PROBES, header_of, send_error


_LOG: Final = logging.getLogger(__name__)


class KeyFile:
    """The keys of a file with one key per line; empty lines and lines with `#` are none.

    The file is read again when it changes. One that cannot be read leaves the keys as they are.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._stat()
        self._hashes = self._read()

    def accepts(self, key: str) -> bool:
        """Whether the key is one of the file's, in a time that does not tell which or how nearly."""
        self._reload_if_changed()
        digest = hashlib.sha256(key.encode()).digest()
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(digest, known)
        return found

    def _reload_if_changed(self) -> None:
        try:
            version = self._stat()
            if version != self._version:
                self._hashes = self._read()
                self._version = version
                _LOG.info("the API keys were read again")
        except (OSError, UnicodeDecodeError):
            _LOG.warning("the API key file cannot be read; the keys stay as they are")

    def _stat(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[bytes, ...]:
        lines = (line.strip() for line in self._path.read_text(encoding="utf-8").splitlines())
        return tuple(
            hashlib.sha256(line.encode()).digest()
            for line in lines
            if line and not line.startswith("#")
        )


class RequireKey:
    """ASGI middleware that lets nothing but probes pass without a key."""

    def __init__(self, app: ASGIApp, keys: KeyFile) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it with 401."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            scheme, _, key = (header_of(scope, b"authorization") or "").partition(" ")
            if scheme.lower() != "bearer" or not self._keys.accepts(key.strip()):
                await send_error(send, _refusal(has_key=bool(key)))
                return
        await self._app(scope, receive, send)


def _refusal(*, has_key: bool) -> ApiError:
    message = "The API key is wrong." if has_key else "An API key is needed."
    error = of_mapping(BY_REASON["UNAUTHENTICATED"], message)
    error.headers["www-authenticate"] = "Bearer"
    return error
