"""What the readers of all containers share: their results and their errors."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Final


class ContainerError(Exception):
    """A file cannot be used. The text is a clause for callers, of this project's own words: "it is cut off"."""


class CutOffError(ContainerError):
    """The file ends too early."""


class DamagedError(ContainerError):
    """The file contradicts its format, or uses a variant that is not read."""


class TooComplexError(ContainerError):
    """Decoding would cost far more than an image of this size may cost."""


class CostlyHeaderError(Exception):
    """Reading the header takes more steps than the caller has for it; the file may be sound."""


BYTES_PER_STEP: Final = 64


@dataclass(slots=True)
class Effort:
    """What reading headers may still cost.

    Attributes:
        steps: Parts of a file, such as blocks, chunks, segments and tags; or `BYTES_PER_STEP` of bytes to search.
            Each takes about a microsecond.
    """

    steps: float

    def spend(self, steps: int) -> None:
        """Raises CostlyHeaderError if there are not so many left."""
        self.steps -= steps
        if self.steps < 0:
            raise CostlyHeaderError

    def spend_bytes(self, num_bytes: int) -> None:
        """As `spend`, for bytes to search or copy."""
        self.spend(num_bytes // BYTES_PER_STEP)


ANY_EFFORT: Final = Effort(math.inf)
"""As much as the limits of the format allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file declares.

    Attributes:
        width: Pixels, at least 1.
        height: Pixels, at least 1.
        passes: How often decoding visits each pixel, about; 1 for all but progressive JPEG.
    """

    width: int
    height: int
    passes: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stripped:
    """A file without what a decoder does not need.

    Attributes:
        header: What the file declares.
        data: The same format, with the same pixels.
        complete: The file goes on to its end mark, or at least to the end of its pixels; if decoding fails
            although it does, the file is damaged, else it is cut off.
        unmarked_end: Only the end mark of a JPEG is missing, or a part of the last scan: only decoding tells which.
        exif: EXIF data that may hold the orientation, or empty.
        xmp: An XMP packet that may hold it, or empty.
        bits: Bits per sample of a TIFF file; 0 = not known.
        inverted: A higher sample means darker, and Pillow does not know.
        swapped: Samples are stored with their high byte first (TIFF).
        variant: In which of the format's many ways it is stored, for refusals; or empty.
    """

    header: Header
    data: bytes
    complete: bool = True
    unmarked_end: bool = False
    exif: bytes = b""
    xmp: bytes = b""
    bits: int = 0
    inverted: bool = False
    swapped: bool = False
    variant: str = ""


def sized(width: int, height: int, passes: float = 1.0) -> Header:
    """A header.

    Raises:
        DamagedError: A side is zero.
    """
    if width < 1 or height < 1:
        raise DamagedError(f"its header declares {width} x {height} pixels")
    return Header(width=width, height=height, passes=passes)
