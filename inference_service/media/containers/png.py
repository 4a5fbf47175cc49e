"""PNG (W3C, third edition): chunks of length, type, data and CRC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import itertools
import re
import struct
from typing import Final
import zlib

from inference_service.media.containers.base import (
    ANY_EFFORT,
    CutOffError,
    DamagedError,
    Effort,
    Header,
    Stripped,
    TooComplexError,
    sized,
)


MAX_CHUNKS: Final = 100_000
"""Encoders that write a chunk per row need tens of thousands."""

MAX_RESUMED: Final = 16
"""Chunks of a wrong length; looking for the next sound one may cost a checksum of the whole file."""

_MAX_TRIED: Final = 4096
_RESUMED: Final = re.compile(rb"PLTE|tRNS|eXIf|IDAT")
"""Chunks with which reading goes on behind one of a wrong length."""

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MAX_METADATA: Final = 2**20
_MAX_PALETTE: Final = 3 * 256
_GREY, _RGB, _PALETTE = 0, 2, 3  # colour types that may have a transparent colour
_RAW_EXIF: Final = (
    b"Raw profile type exif"  # ImageMagick's text chunk: a name, a length and hexadecimal digits
)
_XMP: Final = b"XML:com.adobe.xmp"


def header(data: bytes, effort: Effort = ANY_EFFORT) -> Header:
    """See `containers.header`."""
    del effort  # it has a fixed place
    if data[12:16] == b"CgBI":
        raise DamagedError("it is in Apple's CgBI variant of PNG, which is not read")
    if len(data) < 33:
        raise CutOffError("it ends within its header")
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        if not data.startswith(_SIGNATURE):
            raise DamagedError(
                "its line ends were changed, as by a transfer of text; send it as it was"
            )
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
    if not found.ihdr:
        raise DamagedError("its header has a wrong length")
    parts = [_SIGNATURE, chunk(b"IHDR", found.ihdr)]
    depth, colour = found.ihdr[8], found.ihdr[9]
    if colour == _PALETTE:
        parts.append(chunk(b"PLTE", found.needed_palette()))
    if transparent := _transparency(found.transparency, depth, colour):
        parts.append(chunk(b"tRNS", transparent))
    if not found.pixels:
        raise (
            DamagedError("it has no image data")
            if complete
            else CutOffError("it ends before its image data")
        )
    parts += [chunk(b"IDAT", b"".join(found.pixels)), chunk(b"IEND", b"")]
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
    has_sound_palette: bool = True
    transparency: bytes = b""
    pixels: list[bytes] = field(default_factory=list)
    exif: bytes = b""
    xmp: bytes = b""
    texts: set[bytes] = field(default_factory=set)

    def take(self, kind: bytes, body: bytes, *, sound: bool) -> None:
        match kind:
            case b"IHDR":
                if not sound or len(body) != 13:
                    raise DamagedError("its header has a wrong checksum")
                self.ihdr = self.ihdr or body
            case b"PLTE":
                self.palette, self.has_sound_palette = body, sound
            case b"tRNS" if sound:
                self.transparency = body
            case b"IDAT":
                self.pixels.append(body)
            case b"eXIf":
                self.exif = self.exif or body
            case b"tEXt" | b"zTXt" | b"iTXt":
                self._take_text(kind, body)

    def needed_palette(self) -> bytes:
        """The palette of an image that has one, of at most 256 colours.

        Raises:
            DamagedError: It is missing, or its checksum is wrong.
        """
        if not self.has_sound_palette:
            raise DamagedError("its palette has a wrong checksum")
        if len(self.palette) < 3:
            raise DamagedError("it has no palette")
        return self.palette[:_MAX_PALETTE]

    def _take_text(self, kind: bytes, body: bytes) -> None:
        name = body[:80].partition(b"\0")[0]
        if name in self.texts or name not in {_XMP, _RAW_EXIF}:
            return
        self.texts.add(name)  # the first of each: they may be unpacked for nothing
        text = _text(kind, body)
        if name == _XMP:
            self.xmp = text
        elif not self.exif:
            digits = b"".join(text.split(b"\n", 3)[3:]).replace(b"\n", b"")
            try:
                self.exif = bytes.fromhex(digits.decode("ascii"))
            except ValueError:  # odd, and beside the pixels
                return


def walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, where it begins, where its data ends) of each chunk; the last may be cut off.

    A chunk before the image data that no chunk follows has a wrong length, or is none: the next sound one is next.
    """
    position = 8
    before_pixels = True
    resumed = 0
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        before_pixels = before_pixels and kind != b"IDAT"
        is_doubtful = before_pixels and kind not in {b"IHDR", b"IEND"}
        if is_doubtful and not _is_followed(data, kind, end):
            following = _next_sound(data, position + 8)
            resumed += 1
            if following is None or resumed > MAX_RESUMED:
                return
            position = following
            continue
        if not kind.isalpha():
            return  # trailing bytes that are no chunk; decoding tells whether image data is missing
        yield kind, position, end
        position = end + 4
    raise TooComplexError(f"it has more than {MAX_CHUNKS} chunks")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """(type, data, whether it is sound, for those for which that matters) of each chunk."""
    for kind, position, end in walk(data):
        matters = kind in {b"IHDR", b"PLTE", b"tRNS"}
        yield kind, data[position + 8 : end], not matters or is_sound(data, position, end)


def _is_followed(data: bytes, kind: bytes, end: int) -> bool:
    """Whether a chunk and the next one have types of letters."""
    return kind.isalpha() and data[end + 8 : end + 12].isalpha()


def is_sound(data: bytes, position: int, end: int) -> bool:
    """Whether a chunk has the right checksum.

    Args:
        data: The file.
        position: Where the chunk begins.
        end: Where its data ends.
    """
    if end + 4 > len(data):
        return False
    (checksum,) = struct.unpack_from(">I", data, end)
    return zlib.crc32(memoryview(data)[position + 4 : end]) == int(checksum)


def _next_sound(data: bytes, start: int) -> int | None:
    """Where the next sound chunk of a known type begins; None = nowhere, or it takes too many steps."""
    left = len(data)
    for found in itertools.islice(_RESUMED.finditer(data, start + 4), _MAX_TRIED):
        position = found.start() - 4
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            continue
        left -= end - position
        if left < 0:
            return None
        if is_sound(data, position, end):
            return position
    return None


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
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
