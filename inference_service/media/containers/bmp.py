"""BMP (Windows and OS/2 bitmaps): a file header, an information header, then rows of pixels."""

from __future__ import annotations

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


_OS2_HEADER: Final = 12
_WINDOWS_HEADER: Final = 40
_UNCOMPRESSED: Final = frozenset({0, 3})  # also with bit fields
_UNREAD: Final = {4: "a JPEG file", 5: "a PNG file", 6: "bit fields of Windows CE"}
_RUNS_PASSES: Final = 100.0  # Pillow decodes run lengths in Python
_END_OF_RUNS: Final = b"\0\1"
_MAX_TRAILER: Final = 1024


def header(data: bytes, effort: Effort = ANY_EFFORT) -> Header:
    """See `containers.header`."""
    del effort  # it has a fixed place
    width, height = map(abs, _sides(data))
    return sized(width, height, 1.0 if _compression(data) in _UNCOMPRESSED else _RUNS_PASSES)


def strip(data: bytes) -> Stripped:
    """See `containers.strip`. A bitmap has nothing to strip, but may have more run lengths than it needs."""
    declared = header(data)
    compression = _compression(data)
    if compression in _UNREAD:
        raise DamagedError(f"its pixels are stored as {_UNREAD[compression]}, which is not read")
    complete = True
    (offset,) = struct.unpack_from("<I", data, 10)
    (information,) = struct.unpack_from("<I", data, 14)
    (bits,) = struct.unpack_from("<H", data, 24 if information == _OS2_HEADER else 28)
    if compression in _UNCOMPRESSED:
        row = (declared.width * bits + 31) // 32 * 4
        complete = len(data) >= offset + row * declared.height
    elif len(data) - offset > 2 * (declared.width + 1) * declared.height + _MAX_TRAILER:
        raise TooComplexError("it has more runs than pixels")
    else:
        complete = _END_OF_RUNS in data[offset:][-_MAX_TRAILER:]
    return Stripped(
        header=declared,
        data=data,
        complete=complete,
        variant=f"{bits} bits per pixel, compression {compression}, a header of {information} bytes",
    )


def _compression(data: bytes) -> int:
    (information,) = struct.unpack_from("<I", data, 14)
    if information < _WINDOWS_HEADER:
        return 0
    return int.from_bytes(data[30:34], "little")


def _sides(data: bytes) -> tuple[int, int]:
    if len(data) < 30:
        raise CutOffError("it ends within its header")
    (information,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if information == _OS2_HEADER else "<ii", data, 18)
    return width, height
