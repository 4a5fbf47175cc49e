"""JPEG (ITU T.81): marker segments, then scans of entropy-coded data.

Within entropy-coded data a byte 0xFF is followed by 0 or is a marker, so that markers are found without decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
import hashlib
import itertools
import re
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


MAX_SEGMENTS: Final = 2048
"""Before the first scan. Profiles and XMP in pieces of 64 KiB need 320 for a file of 20 MiB."""

MAX_STRAY: Final = 2**20
"""Bytes between the segments before the first scan: a segment of a wrong length leaves up to 64 KiB."""

MAX_SCANS: Final = 256
"""Encoders write about 10; a scan costs time for every pixel, however few bytes it has."""

MAX_MARKERS: Final = 20_000
"""Other markers from the first scan on; damaged data has one in 8 KiB."""

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP14 = 0xE0, 0xE1, 0xEE
_DQT, _JPEG_LS = 0xDB, 0xF7
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset({0xC2, 0xCA})
_BY_COEFFICIENTS: Final = _PROGRESSIVE | {0xC0, 0xC1, 0xC9}  # Huffman and arithmetic, not lossless
_TABLES: Final = frozenset({0xC4, 0xCC, 0xDB, 0xDD})  # DHT, DAC, DQT, DRI
_MAX_LENGTH: Final = 2**16
_MAX_REPAIRS: Final = 8
_MAX_TRIED: Final = 256
_BESIDE: Final = frozenset((*range(0xE0, 0xF0), 0xFE))  # application data and comments
_NEXT_SEGMENT: Final = re.compile(rb"\xff[\xc0-\xc2\xc4\xdb\xdd\xe0-\xef\xfe]")
_MARKER: Final = re.compile(rb"\xff([\x01-\xfe])")
_SCAN_MARKER: Final = re.compile(
    rb"\xff([\x01-\xcf\xd8-\xfe])"
)  # all but restarts and stuffed bytes
_RESTARTS: Final = range(0xD0, 0xD8)
_MAX_COUNTED: Final = 2**20
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"


def header(data: bytes, effort: Effort = ANY_EFFORT) -> Header:
    """See `containers.header`."""
    for marker, start, end in _segments(data, effort):
        if marker in _FRAMES:
            frame = _Frame.parse(marker, data[start:end])
            scans = _most_scans(data, end) if marker in _PROGRESSIVE else 1
            return sized(frame.width, frame.height, max(1.0, float(scans)))
        if marker == _JPEG_LS:
            raise DamagedError("it is JPEG-LS, which is not read")
        if marker == _SOS:
            break
    raise DamagedError("its image data begins without a header")


def _most_scans(data: bytes, start: int) -> int:
    """As many scans as there are such markers, also of a second image behind the first; in a large file any number."""
    if len(data) - start > _MAX_COUNTED:
        return MAX_SCANS
    return data.count(b"\xff\xda", start)


def strip(data: bytes) -> Stripped:
    """See `containers.strip`."""
    parts = [b"\xff\xd8"]
    frame: _Frame | None = None
    exif = xmp = b""
    for marker, start, end in _segments(data):
        body = data[start:end]
        if marker in _FRAMES:
            frame = _Frame.parse(marker, body)
        if marker == _APP1:
            if body.startswith(b"Exif\0\0"):
                exif = exif or body
            elif body.startswith(_XMP):
                xmp = xmp or body[len(_XMP) :]
        if _is_needed(marker, body):
            parts += [bytes((0xFF, marker)), (len(body) + 2).to_bytes(2, "big"), body]
        if marker == _SOS:
            first_scan = end
    if frame is None:
        raise DamagedError("its image data begins without a header")
    _check_tables(frame, parts)
    frame.add_scan(body)
    end, marked = _end_of_scans(data, first_scan, frame)
    if not marked and not frame.is_covered:
        raise CutOffError("it ends before its last scan")
    parts += [data[first_scan:end] if marked else data[first_scan:end].rstrip(b"\xff"), b"\xff\xd9"]
    return Stripped(
        header=sized(frame.width, frame.height, max(1.0, frame.passes)),
        data=b"".join(parts),
        complete=marked,
        unmarked_end=not marked,
        exif=exif,
        xmp=xmp,
    )


def _check_tables(frame: _Frame, parts: Sequence[bytes]) -> None:
    if frame.marker in _BY_COEFFICIENTS and bytes((0xFF, _DQT)) not in parts:
        raise DamagedError("it has no tables, as one of a stream whose first has those of all")


def continuation(data: bytes, seed: int) -> bytes:
    """Entropy-coded noise as a last scan would go on with, also in its next two restart intervals."""
    scan = data.rfind(b"\xff\xda")
    last = max(_RESTARTS, key=lambda marker: data.rfind(bytes((0xFF, marker)), scan))
    turn = last + 1 if data.find(bytes((0xFF, last)), scan) >= 0 else 0xD0
    noise = hashlib.shake_128(bytes((seed,))).digest(512).replace(b"\xff", b"\x5a")
    return b"".join(
        (
            b"\xb7",
            noise,
            bytes((0xFF, 0xD0 | turn & 7)),
            noise,
            bytes((0xFF, 0xD0 | turn + 1 & 7)),
            noise,
        )
    )


def _segments(data: bytes, effort: Effort = ANY_EFFORT) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the data of each segment up to the first scan's; bytes between segments are skipped."""
    position = 2
    repairs, stray = 0, MAX_STRAY
    for _ in range(MAX_SEGMENTS):
        found = _next_marker(data, position, stray, effort)
        stray -= found.start() - position
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            raise DamagedError("it has no image data")
        if marker == 0x01 or 0xD0 <= marker <= _SOI:
            continue  # stands alone
        length = int.from_bytes(data[position : position + 2], "big")
        if length < 2 and position + 2 <= len(data):
            continue  # no segment has such a length
        is_followed = data[position + length : position + length + 1] == b"\xff"
        if marker in _BESIDE and not is_followed and repairs < _MAX_REPAIRS:
            effort.spend_bytes(min(2 * _MAX_LENGTH, len(data) - position))
            length = _real_length(data, position, length)
            repairs += 1
        if position + max(2, length) > len(data):
            raise CutOffError("it ends before its image data")
        yield marker, position + 2, position + length
        position += length
        if marker == _SOS:
            return
    raise TooComplexError(f"it has more than {MAX_SEGMENTS} segments before its image data")


def _next_marker(data: bytes, position: int, stray: int, effort: Effort) -> re.Match[bytes]:
    """The next marker, which nearly always is at `position`, behind at most `stray` other bytes."""
    effort.spend(1)
    found = _MARKER.match(data, position)
    if found is not None:
        return found
    effort.spend_bytes(min(stray, len(data) - position))
    looked_at = position + stray + 2
    found = _MARKER.search(data, position, looked_at)
    if found is not None:
        return found
    if looked_at < len(data):
        raise CutOffError(f"it has no image data, but {MAX_STRAY} bytes of no segment")
    raise CutOffError("it ends before its image data")


def _real_length(data: bytes, position: int, length: int) -> int:
    """The length of a segment beside the pixels behind which no marker stands: up to the next segment.

    It stays as it is if the segment contains another image, such as a thumbnail.
    """
    if data.find(b"\xff\xd8", position, position + length) >= 0:
        return length
    markers = _NEXT_SEGMENT.finditer(data, position + 2, position + 2 * _MAX_LENGTH)
    for found in itertools.islice(markers, _MAX_TRIED):
        start = found.end()
        size = int.from_bytes(data[start : start + 2], "big")
        if size >= 2 and data[start + size : start + size + 1] == b"\xff":
            return found.start() - position
    return length


def _is_needed(marker: int, body: bytes) -> bool:
    """Tables, frame and scan, and the two application segments that say which colour space it is."""
    if marker == _APP0:
        return body.startswith(b"JFIF\0")
    if marker == _APP14:
        return body.startswith(b"Adobe")
    return marker in _FRAMES or marker in _TABLES or marker == _SOS


@dataclass(slots=True)
class _Frame:
    """The frame header and the scans seen so far.

    Attributes:
        marker: Kind of frame.
        width: Pixels.
        height: Pixels.
        samples: Samples per block of each component, by its id.
        missing_bits: Bits of each coefficient of each component that no scan has brought yet; None = all.
        scans: Number of scans.
        passes: Scans, each weighted with its share of the samples.
    """

    marker: int
    width: int
    height: int
    samples: dict[int, int]
    missing_bits: dict[int, list[int | None]] = field(default_factory=dict)
    scans: int = 0
    passes: float = 0.0

    @classmethod
    def parse(cls, marker: int, body: bytes) -> _Frame:
        if len(body) < 6 or len(body) < 6 + 3 * body[5]:
            raise DamagedError("its header is too short")
        if body[0] != 8:
            raise DamagedError(f"it has {body[0]} bits per sample, but only 8 are read")
        if not int.from_bytes(body[1:3], "big"):
            raise DamagedError("it declares its height behind its image data, which is not read")
        components = [body[6 + 3 * i : 9 + 3 * i] for i in range(body[5])]
        samples = {c[0]: max(1, (c[1] >> 4) * (c[1] & 15)) for c in components}
        return cls(
            marker=marker,
            width=int.from_bytes(body[3:5], "big"),
            height=int.from_bytes(body[1:3], "big"),
            samples=samples,
            missing_bits={component: [None] * 64 for component in samples},
        )

    @property
    def is_covered(self) -> bool:
        """Every bit of every coefficient has been brought by a scan."""
        if self.marker not in _BY_COEFFICIENTS:
            return True
        return all(bits == 0 for missing in self.missing_bits.values() for bits in missing)

    def add_scan(self, body: bytes) -> None:
        """Takes the data of a scan header."""
        self.scans += 1
        if self.scans > MAX_SCANS:
            raise TooComplexError(f"it has more than {MAX_SCANS} scans")
        count = body[0] if body else 0
        if not 1 <= count <= 4 or len(body) < 4 + 2 * count:
            raise DamagedError("the header of a scan is malformed")
        components = [c for c in body[1 : 1 + 2 * count : 2] if c in self.samples]
        self.passes += sum(self.samples[c] for c in components) / sum(self.samples.values())
        first, last, bits = body[-3], body[-2], body[-1] & 15
        if self.marker not in _PROGRESSIVE:
            first, last, bits = 0, 63, 0
        for component in components:
            for index in range(first, min(last, 63) + 1):
                self.missing_bits[component][index] = bits


def _end_of_scans(data: bytes, position: int, frame: _Frame) -> tuple[int, bool]:
    """Where the last scan ends, and whether an end marker stands there."""
    for _ in range(MAX_MARKERS):
        found = _SCAN_MARKER.search(data, position)
        if found is None:
            return len(data), False
        marker, position = found[1][0], found.end()
        if marker == _EOI:
            return found.start(), True
        if marker == _SOI:
            return found.start(), False  # the next of several images
        if not 0xC0 <= marker <= 0xFE:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if position + max(2, length) > len(data):
            raise CutOffError("it ends between two scans")
        if marker == _SOS:
            frame.add_scan(data[position + 2 : position + length])
        position += length
    raise TooComplexError(f"it has more than {MAX_MARKERS} markers in its image data")
