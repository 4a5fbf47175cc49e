"""What the readers of all containers share: their results and their errors."""

from __future__ import annotations

from dataclasses import dataclass


class ContainerError(Exception):
    """A file cannot be used. The text is a clause for callers, of this project's own words: "it is cut off"."""


class CutOffError(ContainerError):
    """The file ends too early."""


class DamagedError(ContainerError):
    """The file contradicts its format, or uses a variant that is not read."""


class TooComplexError(ContainerError):
    """Decoding would cost far more than an image of this size may cost."""


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
