"""Decodes compressed request bodies piece by piece, so that a small one cannot become a large one at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
import zlib

from rest_adapter.errors import ApiError, invalid


SUPPORTED: Final = ("gzip", "deflate")
MAX_MEMBERS: Final = 256
"""Maximum number of gzip members: an empty one has 20 bytes, but takes some 10 us."""

_PIECE_BYTES: Final = 256 * 1024
_GZIP: Final = 16 + zlib.MAX_WBITS


class Decoder:
    """Decodes one gzip or deflate stream.

    Args:
        name: `gzip` or `deflate`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._members = 1
        self._zlib = zlib.decompressobj(_GZIP) if name == "gzip" else None

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decodes the next piece of the stream; yields at most 256 KiB at a time.

        Raises:
            ApiError: The stream is malformed.
        """
        if not data:
            return
        if self._zlib is None:
            self._zlib = zlib.decompressobj(_deflate_bits(data))
        piece = b""
        # A full piece may leave output in zlib although all input is consumed.
        while data or len(piece) == _PIECE_BYTES:
            if self._zlib.eof and data:
                self._begin_member(data)
            try:
                piece = self._zlib.decompress(data, _PIECE_BYTES)
            except zlib.error:
                raise self._malformed("is malformed") from None
            data = self._zlib.unused_data or self._zlib.unconsumed_tail
            yield piece

    def finish(self) -> None:
        """Checks that the stream has ended.

        Raises:
            ApiError: It has not.
        """
        if self._zlib is not None and not self._zlib.eof:
            raise self._malformed("is cut off")

    def _begin_member(self, data: bytes) -> None:
        """A gzip stream may have several members (RFC 1952, 2.2)."""
        if self._name != "gzip" or not data.startswith(b"\x1f"):
            raise self._malformed("goes on after the end of its data")
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise self._malformed(f"has more than {MAX_MEMBERS} members")
        self._zlib = zlib.decompressobj(_GZIP)

    def _malformed(self, what: str) -> ApiError:
        return invalid(f"The {self._name} stream of the body {what}.", None, "INVALID_ENCODING")


def _deflate_bits(data: bytes) -> int:
    """`deflate` means zlib's format (RFC 9110, 8.4.1.2), but some clients leave out its header."""
    has_header = data[0] & 0x0F == zlib.DEFLATED and (
        len(data) < 2 or (data[0] << 8 | data[1]) % 31 == 0
    )
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def decoder_of(content_encoding: str) -> Decoder | None:
    """The decoder for a `content-encoding` header; None = not encoded.

    Raises:
        ApiError: The encoding is not supported.
    """
    name = content_encoding.strip().lower().removeprefix("x-")
    if name in ("", "identity"):
        return None
    if name in SUPPORTED:
        return Decoder(name)
    raise ApiError(
        415,
        f"The content encoding {content_encoding[:100]!r} is not supported; send the body as it is, or with one of: "
        f"{', '.join(SUPPORTED)}.",
        reason="UNSUPPORTED_MEDIA_TYPE",
        headers={"accept-encoding": ", ".join(SUPPORTED)},
    )
