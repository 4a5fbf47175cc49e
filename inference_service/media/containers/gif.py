"""GIF89a: a screen, then blocks of sub-blocks. Only the first frame is read."""

from __future__ import annotations

from dataclasses import dataclass
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


MAX_BLOCKS: Final = 20_000
"""Sub-blocks before the first frame: comments of 5 MB."""

MAX_FRAME_BLOCKS: Final = 500_000
"""Sub-blocks of the first frame. Encoders fill them with 255 bytes, so that a file of 20 MiB needs 82,000."""

MAX_STRAY: Final = 2**16
"""Bytes before the first frame that belong to no block; decoders skip them one by one."""

_EXTENSION, _IMAGE = 0x21, 0x2C
_CONTROL: Final = 0xF9
_BLOCK: Final = re.compile(rb"[\x21\x2c\x3b]")  # extension, image, end


@dataclass(frozen=True, slots=True)
class _Frame:
    """The first frame.

    Attributes:
        screen_end: Where the global colour table ends.
        control: The graphic control extension that belongs to the frame, or empty.
        start: Where its descriptor begins.
        size: Of screen and frame together.
    """

    screen_end: int
    control: bytes
    start: int
    size: Header


def header(data: bytes, effort: Effort = ANY_EFFORT) -> Header:
    """See `containers.header`."""
    return _first_frame(data, effort).size


def strip(data: bytes) -> Stripped:
    """See `containers.strip`."""
    frame = _first_frame(data)
    end, complete = _end_of_frame(data, frame.start)
    return Stripped(
        header=frame.size,
        data=b"".join(
            (data[: frame.screen_end], frame.control, data[frame.start : end], b"\0" * complete)
        )
        + b";" * complete,
        complete=complete,
    )


def _first_frame(data: bytes, effort: Effort = ANY_EFFORT) -> _Frame:
    if len(data) < 13:
        raise CutOffError("it ends within its header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    screen_end = position = 13 + _table_bytes(flags)
    control = b""
    blocks = stray = 0
    most = min(MAX_BLOCKS, effort.steps)
    while found := _BLOCK.search(data, position, position + 1 + MAX_STRAY - stray):
        start = found.start()
        stray += start - position
        position, kind = start, data[start]
        if kind == _IMAGE:
            if position + 10 > len(data):
                raise CutOffError("it ends before its image data")
            left, top, columns, rows = struct.unpack_from("<HHHH", data, position + 1)
            effort.spend(blocks)
            size = sized(max(width, left + columns), max(height, top + rows))
            return _Frame(screen_end, control, start, size)
        if kind == 0x3B:
            raise DamagedError("it has no image data")
        position, count = _after_blocks(data, position + 2, most - blocks)
        blocks += count
        if blocks > most:
            effort.spend(blocks)
            raise TooComplexError(f"it has more than {MAX_BLOCKS} blocks before its first frame")
        if data[start + 1 : start + 2] == bytes((_CONTROL,)):
            control = data[start:position]
    if position + MAX_STRAY - stray < len(data):
        raise CutOffError(f"it has no image data, but {MAX_STRAY} bytes that are no blocks")
    raise CutOffError("it ends before its image data")


def _end_of_frame(data: bytes, start: int) -> tuple[int, bool]:
    """Where the frame's sub-blocks end, before their terminator, and whether they are all there."""
    first = start + 10 + _table_bytes(data[start + 9]) + 1
    position, blocks = _after_blocks(data, first, MAX_FRAME_BLOCKS)
    if blocks > MAX_FRAME_BLOCKS:
        raise TooComplexError(f"its first frame has more than {MAX_FRAME_BLOCKS} blocks")
    if position > len(data):
        return len(data), False
    return position - 1, True


def _after_blocks(data: bytes, position: int, most: float) -> tuple[int, int]:
    """Where sub-blocks end, behind their terminator, and how many they are with it; looks at few more than `most`.

    Of those that are cut off, the end is behind the data.
    """
    blocks = 1
    while position < len(data) and data[position] and blocks <= most:
        position += 1 + data[position]
        blocks += 1
    return position + 1, blocks


def _table_bytes(flags: int) -> int:
    """Size of the colour table that the flags of a screen or frame announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
