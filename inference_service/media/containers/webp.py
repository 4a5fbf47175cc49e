"""WebP (RFC 9649): a RIFF file of chunks with a type, a size and a padded body."""

from __future__ import annotations

from collections.abc import Iterator
import re
import struct
from typing import Final

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


MAX_CHUNKS: Final = 10_000

_KNOWN: Final = frozenset(
    (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ")
)
_PIXELS: Final = frozenset((b"VP8 ", b"VP8L", b"ANMF"))
_TYPE: Final = re.compile(rb"[A-Za-z0-9 ]{4}")
_PIXELS_BEGIN: Final = re.compile(
    rb"VP8 ....[\x00-\xff]{3}\x9d\x01\x2a|VP8L....\x2f|ALPH....[\x00-\x3f]|ANMF....", re.DOTALL
)
_MAX_SEARCH: Final = 2**18
_MAX_REPAIRS: Final = 8
_SIZE_BYTES: Final = 10  # of a body, which tell the size of the image
_ANIMATION, _ALPHA = 0x02, 0x10  # flags of VP8X


def header(data: bytes, effort: Effort = ANY_EFFORT) -> Header:
    """See `containers.header`."""
    canvas: Header | None = None
    for kind, body, _ in _chunks(data, effort, most=_SIZE_BYTES):
        if kind == b"VP8X":
            canvas = _canvas(body)
        elif kind in {b"VP8 ", b"VP8L"}:
            return _size_of(kind, body)
        elif kind == b"ANMF" and canvas is not None:
            return canvas
    if canvas is not None:
        return canvas
    raise CutOffError("it ends before its image data")


def strip(data: bytes) -> Stripped:
    """See `containers.strip`. Of an animation only the first frame is kept."""
    declared = header(data)
    found: dict[bytes, bytes] = {}  # the first chunk of each type, and the first of the pixels
    for kind, body, whole in _chunks(data):
        if kind in _PIXELS and not found.keys() & _PIXELS and not whole:
            # A decoder might make up the last pixels.
            raise CutOffError("it ends within its image data")
        if kind not in _PIXELS or not found.keys() & _PIXELS:
            found.setdefault(kind, body)
    [still] = found.keys() & _PIXELS or [b""]
    if not still:
        raise CutOffError("it ends before its image data")
    chunks = [_chunk(still, found[still])]
    if still == b"ANMF":
        if b"VP8X" not in found:
            raise DamagedError("its image data has no header")
        flags = _ANIMATION | found[b"VP8X"][0] & _ALPHA
        chunks = [
            _extended(flags, declared),
            _chunk(b"ANIM", found.get(b"ANIM", b"\0" * 6)),
            *chunks,
        ]
    elif still == b"VP8 " and b"ALPH" in found:
        chunks = [_extended(_ALPHA, declared), _chunk(b"ALPH", found[b"ALPH"]), *chunks]
    content = b"".join((b"WEBP", *chunks))
    return Stripped(
        header=declared,
        data=b"RIFF" + struct.pack("<I", len(content)) + content,
        exif=found.get(b"EXIF", b""),
        xmp=found.get(b"XMP ", b""),
    )


def _chunks(
    data: bytes, effort: Effort = ANY_EFFORT, *, most: int | None = None
) -> Iterator[tuple[bytes, bytes, bool]]:
    """(type, body or so much of it, whether it is whole) of each chunk, whatever size the file itself declares.

    A chunk before the pixels that no other follows may have a wrong length: the pixels are looked for.
    """
    position = 12
    before_pixels = True
    repairs = 0
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        effort.spend(1)
        kind, size = struct.unpack_from("<4sI", data, position)
        start = position + 8
        end = start + size
        position = end + (size & 1)
        if data[position : position + 4] not in _KNOWN and data[end : end + 4] in _KNOWN:
            position = end  # the padding was forgotten
        before_pixels = before_pixels and kind not in _PIXELS
        if before_pixels and repairs < _MAX_REPAIRS and not _TYPE.match(data, position):
            repairs += 1
            effort.spend_bytes(min(_MAX_SEARCH, len(data) - start))
            pixels = _PIXELS_BEGIN.search(data, start, start + _MAX_SEARCH)
            if pixels is None:
                before_pixels = False  # there are none to look for again
            else:
                position = pixels.start()
                end = min(end, position)
        body_end = end if most is None else min(end, start + most)
        yield kind, data[start:body_end], end <= len(data)
    raise TooComplexError(f"it has more than {MAX_CHUNKS} chunks")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join((kind, struct.pack("<I", len(body)), body, b"\0" * (len(body) & 1)))


def _extended(flags: int, size: Header) -> bytes:
    sides = ((side - 1).to_bytes(3, "little") for side in (size.width, size.height))
    return _chunk(b"VP8X", struct.pack("<I", flags) + b"".join(sides))


def _canvas(body: bytes) -> Header:
    if len(body) < 10:
        raise CutOffError("it ends within its header")
    return sized(int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)


def _size_of(kind: bytes, body: bytes) -> Header:
    if len(body) < (5 if kind == b"VP8L" else 10):
        raise CutOffError("it ends within its header")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return sized((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if body[3:6] != b"\x9d\x01\x2a":
        raise DamagedError("its image data has no header")
    width, height = struct.unpack_from("<HH", body, 6)
    return sized(width & 0x3FFF, height & 0x3FFF)
