"""TIFF 6.0 and BigTIFF: directories of tags, each with a type, a count and a value or its offset."""

from __future__ import annotations

from dataclasses import dataclass
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


MAX_TAGS: Final = 4096
MAX_DIRECTORIES: Final = 64
MAX_PIECES: Final = 200_000
"""Strips or tiles; 50 megapixels in tiles of 16 x 16."""


_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_SAMPLES, _PLANES, _EXTRA, _FORMAT = 277, 284, 338, 339
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
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_SHORT: Final = 3  # a type of tags
_SEPARATE: Final = 2
_UNSIGNED, _SIGNED, _FLOATING = 1, 2, 3
_KINDS: Final = {_UNSIGNED: "unsigned", _SIGNED: "signed", _FLOATING: "floating-point"}


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

    def short(self, tag: int, value: int) -> bytes:
        """The entry of a tag with one number of 16 bits."""
        number = struct.pack(self.order + "H", value)
        return self.entry.pack(tag, _SHORT, 1) + number.ljust(self.offset.size, b"\0")


@dataclass(frozen=True, slots=True)
class _Directory:
    """One image of the file.

    Attributes:
        entries: The bytes of each tag's entry.
        next: Offset of the next directory, or 0.
    """

    entries: dict[int, bytes]
    next: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Samples:
    """What the numbers of a pixel are.

    Attributes:
        bits: Of the widest.
        count: Of each pixel.
        format: Key of `_KINDS`, or a value that no writer should use.
        photometric: How they make a colour.
        compression: How they are stored.
        separate: Each of them has a plane of its own.
        has_alpha: The last of them says how opaque the pixel is.
    """

    bits: int
    count: int
    format: int
    photometric: int
    compression: int
    separate: bool
    has_alpha: bool

    @classmethod
    def of(cls, data: bytes, layout: _Layout, directory: _Directory) -> _Samples:
        def number(tag: int, default: int) -> int:
            return max(_values(data, layout, directory, tag), default=default)

        return cls(
            bits=number(_BITS, 1),
            count=number(_SAMPLES, 1),
            format=number(_FORMAT, _UNSIGNED),
            photometric=number(_PHOTOMETRIC, _WHITE_IS_ZERO),
            compression=number(_COMPRESSION, 1),
            separate=number(_PLANES, 1) == _SEPARATE,
            has_alpha=number(_EXTRA, 0) > 0,
        )

    @property
    def inverted(self) -> bool:
        """Of two wide samples the higher is darker."""
        return self.photometric == _WHITE_IS_ZERO and self.bits > 8

    def check(self) -> None:
        """Refuses what Pillow reads as something else."""
        if self.format == _SIGNED:
            raise DamagedError(
                "its samples have signs, whose range is not defined; send 8 or 16 bits without"
            )
        if (
            self.separate
            and self.has_alpha
            and self.photometric in {_WHITE_IS_ZERO, _BLACK_IS_ZERO}
        ):
            raise DamagedError(
                "its grey and its alpha are in separate planes, which is not read; save it with interleaved samples"
            )

    def __str__(self) -> str:
        """For refusals."""
        kind = _KINDS.get(self.format, "other")
        return (
            f"{self.count} {kind} samples of {self.bits} bits, photometric interpretation {self.photometric},"
            f" compression {self.compression}"
        )


def header(data: bytes, effort: Effort = ANY_EFFORT) -> Header:
    """See `containers.header`."""
    layout, first = _first_directory(data, effort)
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
    samples = _Samples.of(data, layout, first)
    samples.check()
    entries = dict(first.entries)
    if (
        samples.inverted
    ):  # Pillow inverts such samples of few bits only, and refuses some of the others
        entries[_PHOTOMETRIC] = layout.short(_PHOTOMETRIC, _BLACK_IS_ZERO)
    kept = [entries[tag] for tag in sorted(entries) if tag in _NEEDED]
    position = len(data) + len(data) % 2
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
        bits=samples.bits,
        inverted=samples.inverted,
        swapped=layout.order == ">",
        variant=str(samples),
    )


def _first_directory(data: bytes, effort: Effort = ANY_EFFORT) -> tuple[_Layout, _Directory]:
    order = "<" if data[:2] == b"II" else ">"
    layout = _Layout(order, big=43 in data[2:4])
    if len(data) < 16:
        raise CutOffError("it ends within its header")
    (offset,) = layout.offset.unpack_from(data, layout.first)
    return layout, _directory(data, layout, offset, effort)


def _directory(
    data: bytes, layout: _Layout, offset: int, effort: Effort = ANY_EFFORT
) -> _Directory:
    if offset + layout.count.size > len(data):
        raise CutOffError("it ends before its header")
    (count,) = layout.count.unpack_from(data, offset)
    if count > MAX_TAGS:
        raise TooComplexError(f"it has more than {MAX_TAGS} tags")
    start = offset + layout.count.size
    end = start + count * layout.entry_bytes
    if end > len(data):
        raise CutOffError("it ends within its header")
    effort.spend(count)
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
