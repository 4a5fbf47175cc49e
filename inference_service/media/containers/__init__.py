"""Reads the containers of image files without decoding pixels: what is declared, and a copy without anything odd.

One module for each format, with two functions: `header` reads the declared size, in no more steps than it is given, so
that the front's event loop can call it; `strip` walks through the whole file once and copies what a decoder needs. What
is beside the pixels (texts, profiles, thumbnails, further frames) never reaches a decoder: it can neither make a whole
file unreadable nor cost time or memory. Both functions are linear in the size of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from inference_service.media.containers import bmp, gif, jpeg, png, tiff, webp
from inference_service.media.containers.base import ANY_EFFORT, Effort, Header, Stripped


_READERS: Final[
    dict[str, tuple[Callable[[bytes, Effort], Header], Callable[[bytes], Stripped]]]
] = {
    "JPEG": (jpeg.header, jpeg.strip),
    "PNG": (png.header, png.strip),
    "WEBP": (webp.header, webp.strip),
    "GIF": (gif.header, gif.strip),
    "BMP": (bmp.header, bmp.strip),
    "TIFF": (tiff.header, tiff.strip),
}


def header(data: bytes, kind: str, effort: Effort = ANY_EFFORT) -> Header:
    """Reads what a file declares.

    Args:
        data: A file that begins with the magic bytes of `kind`.
        kind: A key of `formats.READABLE`.
        effort: What it may cost, from which it is taken.

    Raises:
        CostlyHeaderError: It costs more.
        CutOffError: The file ends within its header.
        DamagedError: The header is not that of an image.
        TooComplexError: It has more parts than allowed.
    """
    return _READERS[kind][0](data, effort)


def strip(data: bytes, kind: str) -> Stripped:
    """Copies what a decoder needs, with the same errors as `header`."""
    return _READERS[kind][1](data)
