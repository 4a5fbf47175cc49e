"""The compressed image data of a PNG file: whether all rows are there, and the data without its own checksum."""

from __future__ import annotations

from typing import Final
import zlib

from inference_service.media.containers.png import chunk, is_sound, walk


_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Of the seven passes of an interlaced image: first column and row, distance of columns and of rows.
_PASSES: Final = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_AT_ONCE: Final = 2**18
_ZLIB_HEADER: Final = b"\x78\x01"


def is_interlaced(stripped: bytes) -> bool:
    """Whether a stripped file has its pixels in seven passes."""
    return bool(stripped[28])


def has_all_rows(stripped: bytes) -> bool:
    """Whether the image data of a stripped file expands to all rows; decoders leave those black that are missing."""
    size = _size_of_rows(stripped)
    count, _ = _expand(zlib.decompressobj(), _image_data(stripped), size)
    return count >= size


def without_checksum(stripped: bytes, original: bytes) -> bytes | None:
    """A stripped file whose image data ends before its checksum, which decoders do not miss.

    None if that would hide damage: if a checksum of the original's chunks is wrong too, or if rows are missing.
    """
    if not all(
        is_sound(original, start, end) for kind, start, end in walk(original) if kind == b"IDAT"
    ):
        return None
    body = _image_data(stripped)
    size = _size_of_rows(stripped)
    count, end = _expand(zlib.decompressobj(-zlib.MAX_WBITS), body[2:], size + _AT_ONCE)
    if count < size or not end:
        return None
    stream = _ZLIB_HEADER + body[2 : 2 + end]
    return stripped[: stripped.index(b"IDAT") - 4] + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def _image_data(stripped: bytes) -> bytes:
    """Of a stripped file, which has it in one chunk."""
    [(start, end)] = [(start, end) for kind, start, end in walk(stripped) if kind == b"IDAT"]
    return stripped[start + 8 : end]


def _expand(deflated: zlib._Decompress, data: bytes, enough: int) -> tuple[int, int]:
    """(bytes that compressed data expands to, counted until there are enough; where it ends, 0 = not known)."""
    count = 0
    for start in range(0, len(data), _AT_ONCE):
        piece = data[start : start + _AT_ONCE]
        try:
            while piece and not deflated.eof:
                count += len(deflated.decompress(piece, _AT_ONCE))
                piece = deflated.unconsumed_tail
                if count >= enough:
                    break
        except zlib.error:  # damaged, or with a checksum that is wrong
            return count, 0
        if deflated.eof:
            return count, min(start + _AT_ONCE, len(data)) - len(deflated.unused_data)
        if count >= enough:
            break
    return count, 0


def _size_of_rows(stripped: bytes) -> int:
    """Bytes of all rows, each with the byte that names its filter."""
    width, height = (int.from_bytes(stripped[at : at + 4], "big") for at in (16, 20))
    bits = stripped[24] * _CHANNELS.get(stripped[25], 0)
    passes = _PASSES if is_interlaced(stripped) else ((0, 0, 1, 1),)
    size = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            size += rows * (1 + (columns * bits + 7) // 8)
    return size
