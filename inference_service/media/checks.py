"""Checks image files before they are decoded: format, bytes, declared pixels. Needs no Pillow."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

from inference_service.errors import ImageTooLargeError, InvalidImageError, ServiceError
from inference_service.media import containers
from inference_service.media.containers.base import (
    ANY_EFFORT,
    ContainerError,
    CutOffError,
    Effort,
    Header,
    TooComplexError,
)
from inference_service.media.formats import READABLE, READABLE_TEXT, sniff
from inference_service.media.geometry import largest_size
from inference_service.media.images import DecodeLimits


def inspect(data: bytes, limits: DecodeLimits, field: str, effort: Effort = ANY_EFFORT) -> Header:
    """Reads what a file declares, without decoding anything.

    Raises:
        CostlyHeaderError: It costs more effort.
        InvalidImageError: It is of no format that is read, or its header cannot be read.
        ImageTooLargeError: It has more bytes or pixels than allowed.
    """
    kind, data = recognise(data, limits, field, effort)
    with refusals(kind, field):
        declared = containers.header(data, kind, effort)
        check_pixels(declared, limits)
    return declared


def recognise(
    data: bytes, limits: DecodeLimits, field: str, effort: Effort = ANY_EFFORT
) -> tuple[str, bytes]:
    """The format of a file and the file from its magic bytes on."""
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"The image has {len(data)} bytes, but at most {limits.max_bytes} are allowed (--max-image-bytes).",
            field=field,
            metadata={"max_bytes": str(limits.max_bytes)},
        )
    kind, start = sniff(data)
    if kind not in READABLE:
        what = "empty" if not data else f"{kind}" if kind else "of an unknown format"
        raise InvalidImageError(
            f"The image is {what}; it must be a {READABLE_TEXT} file.",
            field=field,
            metadata={"format": kind} if kind else {},
        )
    if not start:
        return kind, data
    effort.spend_bytes(len(data))
    return kind, data[start:]


def check_pixels(declared: Header, limits: DecodeLimits) -> None:
    """Raises ImageTooLargeError if an image has more pixels than allowed."""
    if declared.width * declared.height > limits.max_pixels:
        raise too_many_pixels(limits, declared)


def too_many_pixels(limits: DecodeLimits, declared: Header | None = None) -> ImageTooLargeError:
    """The refusal of an image with more pixels than allowed; `declared` is its size, if known."""
    size = "" if declared is None else f"{declared.width} x {declared.height} pixels, which is "
    return ImageTooLargeError(
        f"The image has {size}more than {limits.max_pixels} pixels, the maximum (--max-image-pixels);"
        " send a smaller one.",
        metadata={"max_pixels": str(limits.max_pixels)},
    )


def check_fits(declared: Header, max_pixels: int, field: str) -> None:
    """Raises ImageTooLargeError if an image has more pixels than its maximum after resizing; tells what would fit."""
    height, width = declared.height, declared.width
    if height * width <= max_pixels:
        return
    max_height, max_width = largest_size(height, width, max_pixels)
    raise ImageTooLargeError(
        f"The image has {width} x {height} pixels, which is more than {max_pixels}, its maximum, and may not be"
        f" resized; the largest size that fits is {max_width} x {max_height}.",
        field=field,
        metadata={
            "width": str(width),
            "height": str(height),
            "max_width": str(max_width),
            "max_height": str(max_height),
            "max_pixels": str(max_pixels),
        },
    )


@contextlib.contextmanager
def refusals(kind: str, field: str) -> Iterator[None]:
    """Turns the errors of reading a file of a known format into refusals that name its field."""
    try:
        yield
    except ContainerError as error:
        raise _refusal(error, kind, field) from None
    except MemoryError:
        short = TooComplexError("it takes more memory than allowed (--decode-memory-mib)")
        raise _refusal(short, kind, field) from None
    except ServiceError as error:
        raise type(error)(error.message, field=field, metadata=error.metadata) from None


def _refusal(error: ContainerError, kind: str, field: str) -> ServiceError:
    """The refusal of a file of a known format."""
    metadata = {"format": READABLE[kind]}
    file = f"The {READABLE[kind]} file"
    match error:
        case CutOffError():
            message = f"{file} is cut off: {error}; send the whole file."
        case TooComplexError():
            return ImageTooLargeError(
                f"{file} costs too much to decode: {error}; save it anew.",
                field=field,
                metadata=metadata,
            )
        case _:
            message = f"{file} cannot be decoded: {error}."
    return InvalidImageError(message, field=field, metadata=metadata)
