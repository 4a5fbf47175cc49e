"""TIFF 6.0 and BigTIFF: directories of tags, each with a type, a count and a value or its offset."""

from __future__ import annotations

from dataclasses import dataclass
import struct
from typing import Final

from inference_service.media.containers.base import (
    CutOffError,
    DamagedError,
    Header,
    Stripped,
    TooComplexError,
    sized,
)


MAX_TAGS: Final = 4096
MAX_DIRECTORIES: Final = 64
MAX_PIECES: Final = 200_000
"""Strips or tiles; 50 megapixels in tiles of 16 x 16."""


_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 256, 257, 258, 262
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_OFFSETS: Final = {
    273: 279,
    324: 325,
}  # strips and tiles: the tag of their offsets and that of their sizes
_NEEDED: Final = frozenset(
    (
        *(_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC),
        *(
            259,
            266,
            274,
            277,
            284,
            292,
            293,
            317,
            320,
            338,
            339,
        ),  # how samples are stored, and the orientation
        *(273, 278, 279, 322, 323, 324, 325),  # strips and tiles
        *(347, 529, 530, 531, 532),  # JPEG tables and YCbCr
    )
)
_FORMATS: Final = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of unsigned numbers
_REDUCED: Final = 1  # bit of `_SUBFILE`: a smaller version of another image of the file
_WHITE_IS_ZERO: Final = 0


@dataclass(frozen=True, slots=True)
class _Layout:
    """Byte order and widths of a classic or a big file."""

    order: str
    big: bool

    @property
    def offset(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ" if self.big else "HHI"))

    @property
    def entry_bytes(self) -> int:
        return 20 if self.big else 12

    @property
    def first(self) -> int:
        """Where the offset of the first directory stands."""
        return 8 if self.big else 4


@dataclass(frozen=True, slots=True)
class _Directory:
    """One image of the file.

    Attributes:
        entries: The bytes of each tag's entry.
        next: Offset of the next directory, or 0.
    """

    entries: dict[int, bytes]
    next: int


def header(data: bytes) -> Header:
    """See `containers.header`."""
    layout, first = _first_directory(data)
    sides = []
    for tag, tile_tag in ((_WIDTH, _TILE_WIDTH), (_HEIGHT, _TILE_HEIGHT)):
        side = _values(data, layout, first, tag, at_most=1)
        if not side:
            raise DamagedError("its header declares no size")
        # A decoder computes whole tiles, however small the image is.
        sides.append(max(side + _values(data, layout, first, tile_tag, at_most=1)))
    return sized(*sides)


def strip(data: bytes) -> Stripped:
    """See `containers.strip`. The directory is written anew behind the data, without texts and further directories."""
    layout, first = _first_directory(data)
    declared = header(data)
    pages = _count_pages(data, layout, first)
    if pages > 1:
        raise DamagedError(
            f"it has {pages} pages, but only TIFF files of one page are read; send each page as an image"
        )
    _check_complete(data, layout, first)
    kept = [first.entries[tag] for tag in sorted(first.entries) if tag in _NEEDED]
    position = len(data) + len(data) % 2
    photometric = _values(data, layout, first, _PHOTOMETRIC, at_most=1)
    bits = max(_values(data, layout, first, _BITS), default=1)
    return Stripped(
        header=declared,
        data=b"".join(
            (
                data[: layout.first],
                layout.offset.pack(position),
                data[layout.first + layout.offset.size :],
                b"\0" * (len(data) % 2),
                layout.count.pack(len(kept)),
                *kept,
                layout.offset.pack(0),
            )
        ),
        bits=bits,
        inverted=photometric == (_WHITE_IS_ZERO,) and bits > 8,
    )


def _first_directory(data: bytes) -> tuple[_Layout, _Directory]:
    order = "<" if data[:2] == b"II" else ">"
    layout = _Layout(order, big=43 in data[2:4])
    if len(data) < 16:
        raise CutOffError("it ends within its header")
    (offset,) = layout.offset.unpack_from(data, layout.first)
    return layout, _directory(data, layout, offset)


def _directory(data: bytes, layout: _Layout, offset: int) -> _Directory:
    if offset + layout.count.size > len(data):
        raise CutOffError("it ends before its header")
    (count,) = layout.count.unpack_from(data, offset)
    if count > MAX_TAGS:
        raise TooComplexError(f"it has more than {MAX_TAGS} tags")
    start = offset + layout.count.size
    end = start + count * layout.entry_bytes
    if end > len(data):
        raise CutOffError("it ends within its header")
    entries: dict[int, bytes] = {}
    for position in range(start, end, layout.entry_bytes):
        entry = data[position : position + layout.entry_bytes]
        entries.setdefault(layout.entry.unpack_from(entry)[0], entry)
    following = 0
    if end + layout.offset.size <= len(data):
        (following,) = layout.offset.unpack_from(data, end)
    return _Directory(entries, following)


def _values(
    data: bytes, layout: _Layout, directory: _Directory, tag: int, *, at_most: int | None = None
) -> tuple[int, ...]:
    """The numbers of a tag, or the first of them; none if it is absent or of another type."""
    entry = directory.entries.get(tag)
    if entry is None:
        return ()
    _, kind, count = layout.entry.unpack_from(entry)
    if kind not in _FORMATS:
        return ()
    size = count * struct.calcsize("=" + _FORMATS[kind])
    if at_most is not None:
        count = min(count, at_most)
    if count > MAX_PIECES:
        raise TooComplexError(f"it has more than {MAX_PIECES} pieces")
    values = struct.Struct(f"{layout.order}{count}{_FORMATS[kind]}")
    inline = layout.entry_bytes - layout.offset.size
    if size <= layout.offset.size:
        return values.unpack_from(entry, inline)
    (offset,) = layout.offset.unpack_from(entry, inline)
    if offset + values.size > len(data):
        raise CutOffError("it ends within its header")
    return values.unpack_from(data, offset)


def _count_pages(data: bytes, layout: _Layout, first: _Directory) -> int:
    """Images of the file that are not reduced versions of others, up to `MAX_DIRECTORIES`."""
    pages = 0
    seen: set[int] = set()
    directory = first
    while True:
        kind = _values(data, layout, directory, _SUBFILE, at_most=1)
        pages += not (kind and kind[0] & _REDUCED)
        offset = directory.next
        if not offset or offset in seen or len(seen) == MAX_DIRECTORIES:
            return max(1, pages)
        seen.add(offset)
        try:
            directory = _directory(data, layout, offset)
        except (CutOffError, TooComplexError):  # nothing that could be a page
            return max(1, pages)


def _check_complete(data: bytes, layout: _Layout, directory: _Directory) -> None:
    """All pieces of pixels must lie within the file: what is appended to it would be read as pixels."""
    for offsets_tag, sizes_tag in _OFFSETS.items():
        offsets = _values(data, layout, directory, offsets_tag)
        sizes = _values(data, layout, directory, sizes_tag) or (1,) * len(offsets)
        if any(offset + size > len(data) for offset, size in zip(offsets, sizes, strict=False)):
            raise CutOffError("it ends within its image data")
