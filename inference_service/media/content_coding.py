"""Undoes the content coding of a response, and sees through the wrong ones that object stores keep as metadata."""

from __future__ import annotations

from typing import Final
import zlib


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


class DecodedTooLargeError(ValueError):
    """The decoded body has more bytes than allowed."""


def content_codings(header: str) -> tuple[str, ...]:
    """The codings of a `Content-Encoding` header that change the bytes, in the order of their application."""
    tokens = (token.strip().lower() for token in header.split(","))
    return tuple(token for token in tokens if token in _CODINGS)


def decode(body: bytes, codings: tuple[str, ...], max_bytes: int) -> bytes:
    """Undoes codings, unless the body is an image already, as files with a wrong header are.

    Args:
        body: The body as received.
        codings: From `content_codings`.
        max_bytes: Maximum size after each step.

    Raises:
        CodingError: The coding is not supported, or the body is not in it.
        DecodedTooLargeError: It has more bytes than allowed.
    """
    for coding in reversed(codings):
        if body.startswith(_IMAGE_STARTS):
            break
        if coding not in _ZLIB:
            raise CodingError(f"a response compressed with {coding}, which was not requested")
        body = _inflate(body, coding, max_bytes)
    return body


def _inflate(body: bytes, coding: str, max_bytes: int) -> bytes:
    if body.startswith(b"\x1f\x8b"):
        window_bits = zlib.MAX_WBITS | 16
    elif coding != "deflate":
        return body  # labelled gzip, but not compressed
    elif len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0:
        window_bits = zlib.MAX_WBITS  # RFC 9110: in the zlib format
    else:
        window_bits = -zlib.MAX_WBITS  # as some servers send it
    inflater = zlib.decompressobj(window_bits)
    try:
        decoded = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise CodingError(f"a response that is not valid {coding}") from error
    if len(decoded) > max_bytes:
        raise DecodedTooLargeError
    if not inflater.eof:
        raise CodingError(f"a {coding} response that ends before it is complete")
    return decoded
