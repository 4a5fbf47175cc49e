"""Writes pixels as a PNG file, so that arrays can be sent without an imaging library."""

from __future__ import annotations

import struct
from typing import Final
import zlib


_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES: Final = {1: 0, 3: 2, 4: 6}
"""Channels -> the PNG colour type (grey, RGB, RGBA)."""
_BOOL: Final = "|b1"
_UINT8: Final = "|u1"


def png_of(shape: tuple[int, ...], typestr: str, pixels: bytes) -> bytes:
    """Encodes an array losslessly (PNG, third edition).

    Args:
        shape: (height, width) or (height, width, channels) with 1, 3 or 4 channels.
        typestr: Type of the elements in numpy's array interface: uint8 or bool (False = black, True = white).
        pixels: The elements in C order.

    Raises:
        ValueError: Shape or type is another one.
    """
    if typestr not in {_BOOL, _UINT8}:
        raise ValueError(
            f"the array's elements are {typestr!r}, whose range is not defined; convert them to uint8 (0 to 255) first"
        )
    channels = shape[2] if len(shape) == 3 else 1
    if len(shape) not in {2, 3} or channels not in _COLOUR_TYPES or 0 in shape:
        raise ValueError(
            f"the array's shape is {shape}, but must be (height, width) or (height, width, 1, 3 or 4)"
        )
    height, width = shape[:2]
    if typestr == _BOOL:
        pixels = pixels.translate(bytes([0, *[255] * 255]))
    row = width * channels
    # Each row begins with its filter: 0 = none.
    rows = b"".join(b"\0" + pixels[start : start + row] for start in range(0, height * row, row))
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
