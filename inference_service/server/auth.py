"""Who may call: keys from a file.

Owns the keys. Must not know which methods exist.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path


class ApiKeys:
    """The keys of a file with one key per line; empty lines and lines with `#` are none, as in the adapter.

    The file is read again when it changes; one that cannot be read leaves the keys as they are. Only digests are kept,
    and every comparison takes the same time (CVE-2025-59425).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        self._reload()

    def accepts(self, authorization: str | None) -> bool:
        """Whether the value of an `authorization` header or metadata entry carries a known key."""
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(digest, kept) for kept in self._digests]
        return scheme.lower() == "bearer" and any(known)

    def _reload(self) -> None:
        """Keeps the old keys while the file is being replaced."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            lines = [line.strip() for line in self._path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError):
            if self._stamp is None:
                raise
            return
        self._digests = tuple(
            hashlib.sha256(line.encode()).digest()
            for line in lines
            if line and not line.startswith("#")
        )
        self._stamp = stamp
