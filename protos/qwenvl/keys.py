"""Reads files of API keys, and checks keys against them, for the gRPC API, the REST API and the clients."""

from __future__ import annotations

import codecs
import hashlib
import hmac
import logging
from pathlib import Path
import stat
from typing import Final


_LOG: Final = logging.getLogger(__name__)
# UTF-32 comes first: its mark begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


_MAX_FILE_BYTES: Final = 2**20
_MAX_KEY_CHARACTERS: Final = 4096
"""HTTP servers and gRPC take headers of 8 to 16 KiB in all."""


class KeyFileError(ValueError):
    """A file is not a file of API keys; the message says why, and has no key in it."""


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file with one key per line; blank lines, `#` comments and the space around a key are ignored.

    Text editors may have saved it: a byte order mark (UTF-8, UTF-16, UTF-32) and any line ends are accepted.

    Raises:
        OSError: It cannot be read.
        KeyFileError: It is no regular file or too large, it is not text, or a line cannot be a key.
    """
    status = path.stat()
    if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(
        status.st_mode
    ):  # never ends, or can be read once only
        raise KeyFileError(
            "is not a regular file: it is read by each process, and again when it changes"
        )
    if status.st_size > _MAX_FILE_BYTES:
        raise KeyFileError(f"has {status.st_size} bytes, but at most {_MAX_FILE_BYTES} are read")
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        # Bytes that are not UTF-8 do no harm in a comment, and are refused below in a key.
        text = data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError:
        raise KeyFileError(f"is not text, although it begins as {encoding.upper()}") from None
    if "\0" in text:
        raise KeyFileError("is not text in UTF-8, or in UTF-16 with a byte order mark")
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if not key or key.startswith("#"):
            continue
        if not key.isascii() or not key.isprintable():
            wrong = ord(next(c for c in key if not c.isascii() or not c.isprintable()))
            is_byte = 0xDC80 <= wrong <= 0xDCFF  # as `surrogateescape` keeps it
            name = f"byte {wrong - 0xDC00:#04x}, not UTF-8" if is_byte else f"U+{wrong:04X}"
            raise KeyFileError(
                f"line {number} has a character that a key cannot have ({name}):"
                " keys are of printable ASCII"
            )
        if len(key) > _MAX_KEY_CHARACTERS:
            raise KeyFileError(
                f"line {number} has {len(key)} characters, but a key has at most {_MAX_KEY_CHARACTERS}"
            )
        keys.append(key)
    return tuple(keys)


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
    """The keys of a file, see `read_keys`.

    The file is read again when it changes; if it cannot be read, the keys stay unchanged. Only digests are kept, and
    comparisons take constant time (CVE-2025-59425).

    Args:
        path: The file.

    Raises:
        OSError: It cannot be read.
        KeyFileError: It is not a file of API keys.
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
        except (OSError, KeyFileError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            _LOG.warning("the API key file cannot be read; the keys stay unchanged: %s", problem)

    def _stat(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[bytes, ...]:
        return tuple(map(digest_of, read_keys(self._path)))
