"""Undoes the content coding of a response, and sees through the wrong ones that object stores keep as metadata."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final
import zlib


MAX_CODINGS: Final = 2
"""Layers that are undone. Each may expand to the maximum size and shrink again; hosts need one."""

PIECE_BYTES: Final = 2**17
"""Bytes that a step reads or makes."""

# One, so that compressed images take at most one processor; and of its own, so that nothing else waits for them.
_THREAD: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="content-codings")

# The codings that change the bytes (IANA's HTTP Content Coding Registry). Anything else was stored with the object by
# whoever uploaded it (`aws-chunked`, `utf-8`, `base64`, `image/png`) and says nothing about the bytes.
_CODINGS: Final = frozenset(
    [
        "br",
        "compress",
        "dcb",
        "dcz",
        "deflate",
        "exi",
        "gzip",
        "pack200-gzip",
        "x-compress",
        "x-gzip",
        "zstd",
    ]
)
_ZLIB: Final = frozenset({"gzip", "x-gzip", "deflate"})
_IMAGE_STARTS: Final = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*"),
)


class CodingError(ValueError):
    """The body cannot be decoded; the message is safe to return to a client."""


def content_codings(header: str) -> tuple[str, ...]:
    """The codings of a `Content-Encoding` header that change the bytes, in the order of their application."""
    tokens = (token.strip().lower() for token in header.split(","))
    return tuple(token for token in tokens if token in _CODINGS)


class Decoding:
    """Undoes the codings of a body, one after the other; a body that is an image already has a wrong header.

    Args:
        codings: From `content_codings`.
    """

    def __init__(self, codings: tuple[str, ...]) -> None:
        self._left = list(codings)
        self._undone = 0

    def next(self, body: bytes) -> Inflation | None:
        """What undoes the next coding that a body is in; None = it is in none, whatever its header says.

        Raises:
            CodingError: The coding is not supported, or there are too many.
        """
        while self._left and not body.startswith(_IMAGE_STARTS):
            coding = self._left.pop()
            if coding not in _ZLIB:
                raise CodingError(f"a response compressed with {coding}, which was not requested")
            window_bits = _window_bits(body, coding)
            if window_bits is not None:
                self._undone += 1
                if self._undone > MAX_CODINGS:
                    raise CodingError(f"a response compressed more than {MAX_CODINGS} times")
                return Inflation(body, coding, window_bits)
        return None


class Inflation:
    """Undoes one coding in steps that take a millisecond at most, whatever the body is.

    Attributes:
        done: Nothing is left to do.
    """

    def __init__(self, body: bytes, coding: str, window_bits: int) -> None:
        self.done = False
        self._coding = coding
        self._body = memoryview(body)
        self._zlib = zlib.decompressobj(window_bits)

    async def piece(self) -> bytes:
        """The next piece of the decoded body, of up to `PIECE_BYTES`, or none yet; from a thread.

        Raises:
            CodingError: The body is not in this coding, or ends before it is complete.
        """
        return await asyncio.get_running_loop().run_in_executor(_THREAD, self._step)

    def _step(self) -> bytes:
        given: bytes | memoryview = self._zlib.unconsumed_tail
        if not given:
            given, self._body = self._body[:PIECE_BYTES], self._body[PIECE_BYTES:]
        try:
            decoded = self._zlib.decompress(given, PIECE_BYTES)
        except zlib.error as error:
            raise CodingError(f"a response that is not valid {self._coding}") from error
        self.done = self._zlib.eof
        if not (self.done or decoded or given):
            raise CodingError(f"a {self._coding} response that ends before it is complete")
        return decoded


def _window_bits(body: bytes, coding: str) -> int | None:
    """The argument with which zlib reads a body; None if it is only labelled as compressed."""
    if body.startswith(b"\x1f\x8b"):
        return zlib.MAX_WBITS | 16
    if coding != "deflate":
        return None
    if len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0:
        return zlib.MAX_WBITS  # RFC 9110: in the zlib format
    return -zlib.MAX_WBITS  # as some servers send it
