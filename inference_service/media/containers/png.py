"""PNG (W3C, third edition): chunks of length, type, data and CRC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import struct
from typing import Final
import zlib

from inference_service.media.containers.base import (
    CutOffError,
    DamagedError,
    Header,
    Stripped,
    TooComplexError,
    sized,
)


MAX_CHUNKS: Final = 100_000
"""Encoders that write a chunk per row need tens of thousands."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MAX_METADATA: Final = 2**20
_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types that may have a transparent colour
_RAW_EXIF: Final = (
    b"Raw profile type exif"  # ImageMagick's text chunk: a name, a length and hexadecimal digits
)
_XMP: Final = b"XML:com.adobe.xmp"


def header(data: bytes) -> Header:
    """See `containers.header`."""
    if data[12:16] == b"CgBI":
        raise DamagedError("it is in Apple's CgBI variant of PNG, which is not read")
    if len(data) < 33:
        raise CutOffError("it ends within its header")
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        raise DamagedError("it has no PNG header")
    return sized(*struct.unpack_from(">II", data, 16))


def strip(data: bytes) -> Stripped:
    """See `containers.strip`."""
    declared = header(data)
    found = _Chunks()
    complete = False
    for kind, body, sound in _chunks(data):
        if kind == b"IEND":
            complete = True
            break
        found.take(kind, body, sound=sound)
    parts = [_SIGNATURE, _chunk(b"IHDR", found.ihdr)]
    depth, colour = found.ihdr[8], found.ihdr[9]
    if colour == _PALETTE:
        parts.append(_chunk(b"PLTE", found.palette))
    if transparent := _transparency(found.transparency, depth, colour):
        parts.append(_chunk(b"tRNS", transparent))
    if not found.pixels:
        raise (
            DamagedError("it has no image data")
            if complete
            else CutOffError("it ends before its image data")
        )
    parts += [_chunk(b"IDAT", b"".join(found.pixels)), _chunk(b"IEND", b"")]
    return Stripped(
        header=declared,
        data=b"".join(parts),
        complete=complete,
        exif=found.exif,
        xmp=found.xmp,
    )


@dataclass(slots=True)
class _Chunks:
    """The chunks that matter."""

    ihdr: bytes = b""
    palette: bytes = b""
    transparency: bytes = b""
    pixels: list[bytes] = field(default_factory=list)
    exif: bytes = b""
    xmp: bytes = b""

    def take(self, kind: bytes, body: bytes, *, sound: bool) -> None:
        match kind:
            case b"IHDR":
                if not sound or len(body) != 13:
                    raise DamagedError("its header has a wrong checksum")
                self.ihdr = self.ihdr or body
            case b"PLTE":
                if not sound:
                    raise DamagedError("its palette has a wrong checksum")
                self.palette = body
            case b"tRNS" if sound:
                self.transparency = body
            case b"IDAT":
                self.pixels.append(body)
            case b"eXIf":
                self.exif = self.exif or body
            case b"tEXt" | b"zTXt" | b"iTXt":
                self._take_text(kind, body)

    def _take_text(self, kind: bytes, body: bytes) -> None:
        name = body[:80].partition(b"\0")[0]
        if name == _XMP and not self.xmp:
            self.xmp = _text(kind, body)
        elif name == _RAW_EXIF and not self.exif:
            digits = b"".join(_text(kind, body).split(b"\n")[3:])
            try:
                self.exif = bytes.fromhex(digits.decode("ascii"))
            except ValueError:  # odd, and beside the pixels
                return


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(type, data, whether the checksum is right) of each chunk; the last may be cut off."""
    position = 8
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        if not kind.isalpha():
            return  # trailing bytes that are no chunk; decoding tells whether image data is missing
        end = position + 8 + length
        body = data[position + 8 : end]
        checked = end + 4 <= len(data)
        if kind in {b"IHDR", b"PLTE", b"tRNS"}:
            checked = (
                checked
                and zlib.crc32(body, zlib.crc32(kind)) == struct.unpack_from(">I", data, end)[0]
            )
        yield kind, body, checked
        position = end + 4
    raise TooComplexError(f"it has more than {MAX_CHUNKS} chunks")


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))


def _transparency(body: bytes, depth: int, colour: int) -> bytes:
    """The transparent colour in the scale of decoded samples, which is what Pillow compares it with.

    Of 16-bit colours only the high bytes are decoded, so that colours that differ in the low bytes only are
    transparent too.
    """
    if colour == _PALETTE:
        return body[:256]
    count = {_GREY: 1, _RGB: 3}.get(colour, 0)
    if not count or len(body) < 2 * count:
        return b""
    values = struct.unpack_from(f">{count}H", body)
    if depth == 16:
        if colour == _GREY:  # decoded in full
            return body[:2]
        return struct.pack(">3H", *(value >> 8 for value in values))
    largest = (1 << depth) - 1
    scale = 1 if depth == 1 else 255 // largest
    return struct.pack(f">{count}H", *((value & largest) * scale for value in values))


def _text(kind: bytes, body: bytes) -> bytes:
    """The text of a text chunk, up to a megabyte; empty if it cannot be read."""
    _, _, rest = body.partition(b"\0")
    compressed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]
    if not compressed:
        return rest[:_MAX_METADATA]
    try:
        return zlib.decompressobj().decompress(rest, _MAX_METADATA)
    except zlib.error:
        return b""
