"""Checks API keys against a file, for the gRPC and the REST API."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Final


_LOG: Final = logging.getLogger(__name__)


def key_of(authorization: str | None) -> str:
    """The key in `Bearer KEY`, the value of an `authorization` header or metadata entry (RFC 6750).

    Args:
        authorization: The value, with a scheme in any case and any spaces around the key; None = not sent.

    Returns:
        The key; empty if there is none or the scheme is another one.
    """
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def digest_of(key: str) -> bytes:
    """The SHA-256 digest of a key, by which keys are compared and callers are told apart."""
    return hashlib.sha256(key.encode()).digest()


class KeyFile:
    """The keys of a file with one key per line; blank lines and `#` comments are ignored.

    The file is read again when it changes; if it cannot be read, the keys stay unchanged. Only digests are kept, and
    comparisons take constant time (CVE-2025-59425).

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._stat()
        self._digests = self._read()

    def accepts(self, authorization: str | None) -> bool:
        """Whether the value of an `authorization` header or metadata entry has a known key, see `key_of`."""
        self._reload_if_changed()
        digest = digest_of(key_of(authorization))
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _reload_if_changed(self) -> None:
        try:
            version = self._stat()
            if version != self._version:
                self._digests = self._read()
                self._version = version
                _LOG.info("the API keys were reloaded")
        except (OSError, UnicodeDecodeError):
            _LOG.warning("the API key file cannot be read; the keys stay unchanged")

    def _stat(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[bytes, ...]:
        lines = (line.strip() for line in self._path.read_text(encoding="utf-8").splitlines())
        return tuple(digest_of(line) for line in lines if line and not line.startswith("#"))
