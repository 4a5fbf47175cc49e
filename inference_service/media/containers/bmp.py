"""BMP (Windows and OS/2 bitmaps): a file header, an information header, then rows of pixels."""

from __future__ import annotations

import struct
from typing import Final

from inference_service.media.containers.base import CutOffError, Header, Stripped, sized


_OS2_HEADER: Final = 12
_UNCOMPRESSED: Final = frozenset({0, 3})  # also with bit fields


def header(data: bytes) -> Header:
    """See `containers.header`."""
    return sized(*map(abs, _sides(data)))


def strip(data: bytes) -> Stripped:
    """See `containers.strip`. A bitmap has nothing to strip."""
    declared = header(data)
    complete = True
    (offset,) = struct.unpack_from("<I", data, 10)
    (information,) = struct.unpack_from("<I", data, 14)
    if information == _OS2_HEADER:
        (bits,), compression = struct.unpack_from("<H", data, 24), 0
    elif len(data) >= 34:
        bits, compression = struct.unpack_from("<HI", data, 28)
    else:
        bits, compression = 0, 0
    if compression in _UNCOMPRESSED:
        row = (declared.width * bits + 31) // 32 * 4
        complete = len(data) >= offset + row * declared.height
    return Stripped(header=declared, data=data, complete=complete)


def _sides(data: bytes) -> tuple[int, int]:
    if len(data) < 26:
        raise CutOffError("it ends within its header")
    (information,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if information == _OS2_HEADER else "<ii", data, 18)
    return width, height
