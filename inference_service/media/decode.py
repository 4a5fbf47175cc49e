"""Decodes image files with Pillow into the RGB pixels for the model.

The bytes are untrusted: few formats are allowed, sizes are read from the header before anything is allocated, decoders
see only what they need of a file, and no text of a parser reaches a caller (CVE-2026-22778: it leaked a heap address).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import io
from typing import Final
import warnings

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from inference_service.errors import InvalidImageError, ServiceError
from inference_service.media import containers
from inference_service.media.checks import check_pixels, recognise, refusals, too_many_pixels
from inference_service.media.containers import png_data
from inference_service.media.containers.base import (
    ContainerError,
    CutOffError,
    DamagedError,
    Header,
    Stripped,
    TooComplexError,
)
from inference_service.media.containers.jpeg import continuation
from inference_service.media.geometry import processed_size, video_size
from inference_service.media.images import (
    DecodeLimits,
    FrameSpec,
    ProcessedImage,
    Size,
    processed_image,
)
from inference_service.media.pixels import to_rgb
from inference_service.model_spec import ImagePolicy


MAX_PASSES: Final = 8
"""Maximum scans of an image of the maximum size; smaller images may have more. Encoders write 5 to 6, weighted."""

_BAND_ROWS: Final = 256

_PLUGINS: Final = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
"""Imported here, as Pillow would otherwise import the plugins of all formats."""

# Pillow's own reader of uncompressed files takes planes of 16 bits for planes of 8 bits; libtiff reads all.
TiffImagePlugin.READ_LIBTIFF = True

# Pillow's own limit (89 million pixels) also applies, as an error.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode_image(
    data: bytes,
    *,
    policy: ImagePolicy,
    min_pixels: int,
    max_pixels: int,
    limits: DecodeLimits,
    field: str,
) -> ProcessedImage:
    """Decodes and resizes an image as transformers' `Qwen2VLImageProcessorPil` does.

    Args:
        data: A file in one of `formats.READABLE`; the first frame of an animation is used.
        policy: The family's rules.
        min_pixels: Minimum area after resizing.
        max_pixels: Maximum area after resizing.
        limits: Limits on the image as sent.
        field: Path of the image in the request, for errors.

    Raises:
        InvalidImageError: It cannot be decoded, is cut off, or its aspect ratio is too large.
        ImageTooLargeError: It has more bytes or pixels than allowed, or costs too much to decode.
    """

    def size_of(height: int, width: int) -> Size:
        return processed_size(height, width, policy, min_pixels=min_pixels, max_pixels=max_pixels)

    pixels, original, size = _resized(data, policy, limits, field, size_of)
    return processed_image([pixels], original, size, policy)


def decode_rgb(
    data: bytes, *, policy: ImagePolicy, limits: DecodeLimits, field: str
) -> Image.Image:
    """The pixels of an image before they are resized; arguments and errors as `decode_image`."""
    kind, data = recognise(data, limits, field)
    with refusals(kind, field):
        return _decode_rgb(data, kind, limits, policy)


def decode_video(
    files: Sequence[bytes], fields: Sequence[str], spec: FrameSpec, limits: DecodeLimits
) -> tuple[ProcessedImage, ...]:
    """Decodes and resizes the frames of a video; equal files once.

    Args:
        files: One file per frame, as for `decode_image`; at least one.
        fields: Path of each frame in the request, for errors.
        spec: How to process them.
        limits: Limits on each frame as sent.

    Returns:
        The whole video, or one item per temporal patch if the family's policy has timestamps.

    Raises:
        InvalidImageError: A frame cannot be decoded, is cut off, has too large an aspect ratio, or differs in size
            from the first.
        ImageTooLargeError: A frame has more bytes or pixels than allowed, or costs too much to decode.
    """
    policy, video = spec.policy, spec.video
    depth = policy.temporal_patch_size

    def size_of(height: int, width: int) -> Size:
        return video_size(len(files), height, width, policy, video)

    decoded: dict[bytes, tuple[bytes, Size, Size]] = {}
    for data, field in zip(files, fields, strict=True):
        if data in decoded:
            continue
        decoded[data] = _resized(data, policy, limits, field, size_of)
        _check_same_size(decoded[data][1], decoded[files[0]][1], field)
    _, original, size = decoded[files[0]]
    seconds = depth / spec.fps
    time_step = 1.0 if video.tokens_per_second is None else video.tokens_per_second * seconds
    piece = depth if video.timestamps else len(files)
    return tuple(
        processed_image(
            [decoded[data][0] for data in files[start : start + piece]],
            original,
            size,
            policy,
            is_video=True,
            time_step=time_step,
        )
        for start in range(0, len(files), piece)
    )


def _check_same_size(size: Size, first: Size, field: str) -> None:
    if size != first:
        raise InvalidImageError(
            f"The frame has {size[1]} x {size[0]} pixels, but the first one {first[1]} x {first[0]}; all"
            " frames of a video must have the same size.",
            field=field,
        )


def _resized(
    data: bytes,
    policy: ImagePolicy,
    limits: DecodeLimits,
    field: str,
    size_of: Callable[[int, int], Size],
) -> tuple[bytes, Size, Size]:
    """The resized pixels of a file, its original (height, width) and the new one."""
    kind, data = recognise(data, limits, field)
    with refusals(kind, field):
        rgb = _decode_rgb(data, kind, limits, policy)
        original = (rgb.height, rgb.width)
        height, width = size_of(*original)
        pixels = rgb.resize((width, height), Image.Resampling.BICUBIC).tobytes()
    return pixels, original, (height, width)


def _decode_rgb(data: bytes, kind: str, limits: DecodeLimits, policy: ImagePolicy) -> Image.Image:
    check_pixels(containers.header(data, kind), limits)
    stripped = containers.strip(data, kind)
    check_pixels(stripped.header, limits)
    passes = stripped.header.passes
    if passes * stripped.header.width * stripped.header.height > MAX_PASSES * limits.max_pixels:
        raise TooComplexError(f"it visits each of its pixels {passes:.0f} times")
    try:
        image = _loaded_whole(stripped, data, kind, limits)
        if stripped.unmarked_end:
            _check_whole(image, stripped, limits)
        return to_rgb(image, stripped, policy)
    except (ContainerError, ServiceError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many_pixels(limits) from None
    except Exception:  # noqa: BLE001 - parsers of untrusted bytes may raise anything; their text is not passed on
        if stripped.complete:
            variant = f" ({stripped.variant})" if stripped.variant else ""
            raise DamagedError(
                f"its data is damaged, or of a variant that is not read{variant}"
            ) from None
        raise CutOffError("it ends within its image data") from None


def _loaded(data: bytes, kind: str, limits: DecodeLimits) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        check_pixels(Header(width=image.width, height=image.height), limits)
        image.load()
        if isinstance(image, WebPImagePlugin.WebPImageFile):
            image._decoder = None  # noqa: SLF001 - it holds two canvases more
        return image


def _loaded_whole(
    stripped: Stripped, original: bytes, kind: str, limits: DecodeLimits
) -> Image.Image:
    """A decoded file with all its rows, except for JPEG."""
    if kind == "PNG":
        return _loaded_png(stripped.data, original, limits)
    return _loaded(stripped.data, kind, limits)


def _loaded_png(stripped: bytes, original: bytes, limits: DecodeLimits) -> Image.Image:
    """A PNG file with all its rows; the checksum of its compressed data may be wrong."""
    try:
        image = _loaded(stripped, "PNG", limits)
    except (OSError, SyntaxError, ValueError):
        unchecked = png_data.without_checksum(stripped, original)
        if unchecked is None:
            raise
        return _loaded(unchecked, "PNG", limits)
    last = image.crop((0, image.height - 1, image.width, image.height))
    # Rows that the data does not have are black, without an error.
    might_lack_rows = png_data.is_interlaced(stripped) or last.getbbox() is None
    if might_lack_rows and not png_data.has_all_rows(stripped):
        raise CutOffError("it ends within its image data")
    return image


def _check_whole(image: Image.Image, stripped: Stripped, limits: DecodeLimits) -> None:
    """A JPEG without end mark must lack only that: more data in its last scan then changes nothing."""
    data, end = stripped.data[:-2], stripped.data[-2:]
    for seed in range(2):
        longer = _loaded(data + continuation(data, seed) + end, "JPEG", limits)
        if not _are_equal(image, longer):
            raise CutOffError("it ends within its image data")


def _are_equal(one: Image.Image, other: Image.Image) -> bool:
    """Compares in bands: a copy of all pixels would need as much memory again."""
    for top in range(0, one.height, _BAND_ROWS):
        box = (0, top, one.width, min(top + _BAND_ROWS, one.height))
        if one.crop(box).tobytes() != other.crop(box).tobytes():
            return False
    return True
