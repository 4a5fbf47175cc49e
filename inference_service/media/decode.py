"""Decodes image files with Pillow into the RGB pixels for the model.

The bytes are untrusted: few formats are allowed, sizes are read from the header before anything is allocated, and no
text of the parser reaches a caller (CVE-2026-22778: it leaked a heap address).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import hashlib
import io
from typing import Final
import warnings

from PIL import Image

from inference_service.errors import ImageTooLargeError, InvalidImageError
from inference_service.media.geometry import image_grid, processed_size, video_size
from inference_service.model_spec import ImagePolicy, VideoPolicy
from inference_service.settings import ServiceSettings


FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF")

_ORIENTATION: Final = 0x0112  # EXIF 2.32; 1 and unknown values mean upright
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own limit (89 million pixels) also applies, as an error.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """Limits on an image as sent: bytes of the file, pixels in its header."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> DecodeLimits:
        """The operator's limits."""
        return cls(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedImage:
    """An image or video, resized for the model.

    Attributes:
        pixels: RGB uint8, frames x height x width x 3, C order.
        height: Pixels, a multiple of the policy's step.
        width: Pixels, a multiple of the policy's step.
        original_height: Pixels as decoded, after the EXIF orientation was applied.
        original_width: Pixels as decoded, after the EXIF orientation was applied.
        grid: (times, rows, columns) in patches.
        num_tokens: Placeholder tokens it takes in a prompt.
        digest: 32 bytes: sha256 over mode, both sizes, policy and `pixels`. The processed pixels are hashed, not the
            decoded ones: the model's results depend on them only, and they are fewer.
        frames: Number of frames in `pixels`; an image has one.
        time_step: Positions on the time axis for each temporal patch.
        is_video: It is a video or a part of one.
    """

    pixels: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    grid: tuple[int, int, int]
    num_tokens: int
    digest: bytes
    frames: int = 1
    time_step: float = 1.0
    is_video: bool = False


class ImageDecoder:
    """Decodes images in threads; Pillow releases the GIL while decoding."""

    def __init__(self, limits: DecodeLimits, *, workers: int) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")

    async def decode(
        self, data: bytes, *, policy: ImagePolicy, min_pixels: int, max_pixels: int, field: str
    ) -> ProcessedImage:
        """`decode_image` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: decode_image(
                data,
                policy=policy,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                limits=self._limits,
                field=field,
            ),
        )

    async def decode_video(
        self, files: Sequence[bytes], fields: Sequence[str], spec: FrameSpec
    ) -> tuple[ProcessedImage, ...]:
        """`decode_video` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: decode_video(files, fields, spec, self._limits)
        )

    def close(self) -> None:
        """Ends the threads; images that are still queued are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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
        data: A file in JPEG, PNG, WebP or GIF; the first frame of an animation is used.
        policy: The family's rules.
        min_pixels: Minimum area after resizing.
        max_pixels: Maximum area after resizing.
        limits: Limits on the image as sent.
        field: Path of the image in the request, for errors.

    Raises:
        InvalidImageError: It cannot be decoded, is truncated, or its aspect ratio is too large.
        ImageTooLargeError: It has more bytes or pixels than allowed.
    """

    def size_of(height: int, width: int) -> tuple[int, int]:
        return processed_size(height, width, policy, min_pixels=min_pixels, max_pixels=max_pixels)

    pixels, original, size = _resized(data, policy, limits, field, size_of)
    return _processed([pixels], original, size, policy)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSpec:
    """How to process the frames of a video.

    Attributes:
        policy: The family's rules for images.
        video: The family's rules for videos.
        fps: Frames per second.
    """

    policy: ImagePolicy
    video: VideoPolicy
    fps: float


def decode_video(
    files: Sequence[bytes], fields: Sequence[str], spec: FrameSpec, limits: DecodeLimits
) -> tuple[ProcessedImage, ...]:
    """Decodes and resizes the frames of a video.

    Args:
        files: One file per frame, as for `decode_image`; at least one.
        fields: Path of each frame in the request, for errors.
        spec: How to process them.
        limits: Limits on each frame as sent.

    Returns:
        The whole video, or one item per temporal patch if the family's policy has timestamps.

    Raises:
        InvalidImageError: A frame cannot be decoded, is truncated, has too large an aspect ratio, or differs in size
            from the first.
        ImageTooLargeError: A frame has more bytes or pixels than allowed.
    """
    policy, video = spec.policy, spec.video
    depth = policy.temporal_patch_size

    def size_of(height: int, width: int) -> tuple[int, int]:
        return video_size(len(files), height, width, policy, video)

    frames = [
        _resized(data, policy, limits, field, size_of)
        for data, field in zip(files, fields, strict=True)
    ]
    _, original, size = frames[0]
    for (_, other, _), field in zip(frames, fields, strict=True):
        if other != original:
            raise InvalidImageError(
                f"The frame has {other[1]} x {other[0]} pixels, but the first one {original[1]} x {original[0]}; all"
                " frames of a video must have the same size.",
                field=field,
            )
    seconds = depth / spec.fps
    time_step = 1.0 if video.tokens_per_second is None else video.tokens_per_second * seconds
    piece = depth if video.timestamps else len(frames)
    return tuple(
        _processed(
            [pixels for pixels, _, _ in frames[start : start + piece]],
            original,
            size,
            policy,
            is_video=True,
            time_step=time_step,
        )
        for start in range(0, len(frames), piece)
    )


_Size = tuple[int, int]


def _resized(
    data: bytes,
    policy: ImagePolicy,
    limits: DecodeLimits,
    field: str,
    size_of: Callable[[int, int], _Size],
) -> tuple[bytes, _Size, _Size]:
    """The resized pixels of a file, its original (height, width) and the new one."""
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(len(data), limits, field)
    try:
        rgb = _decode_rgb(data, limits, policy)
        original = (rgb.height, rgb.width)
        height, width = size_of(*original)
        pixels = rgb.resize((width, height), Image.Resampling.BICUBIC).tobytes()
    except InvalidImageError as error:
        raise InvalidImageError(error.message, field=field) from None
    except _TOO_MANY_PIXELS:
        raise _too_many_pixels(limits, field) from None
    except Exception:  # noqa: BLE001 - parsers of untrusted bytes may raise anything; their text is not passed on
        raise InvalidImageError(
            "The image cannot be decoded; it must be a complete JPEG, PNG, WebP or GIF file.",
            field=field,
        ) from None
    return pixels, original, (height, width)


def _processed(
    frames: Sequence[bytes],
    original: _Size,
    size: _Size,
    policy: ImagePolicy,
    *,
    is_video: bool = False,
    time_step: float = 1.0,
) -> ProcessedImage:
    times = -(-len(frames) // policy.temporal_patch_size)
    grid = (times, *image_grid(*size, policy)[1:])
    pixels = b"".join(frames)
    return ProcessedImage(
        pixels=pixels,
        height=size[0],
        width=size[1],
        original_height=original[0],
        original_width=original[1],
        grid=grid,
        num_tokens=policy.tokens_of(grid),
        digest=_digest(pixels, (*original, *size, time_step), policy),
        frames=len(frames),
        time_step=time_step,
        is_video=is_video,
    )


class _TooManyPixelsError(Exception):
    """The header declares more pixels than allowed."""


_TOO_MANY_PIXELS = (
    _TooManyPixelsError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def _decode_rgb(data: bytes, limits: DecodeLimits, policy: ImagePolicy) -> Image.Image:
    _check_pixels(_webp_size(data), limits)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_pixels(image.size, limits)
        image.load()
        upright = _upright(image) if policy.exif_transpose else image
        return _on_white(upright) if policy.white_background else upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """As Pillow's `exif_transpose`, which also rewrites the EXIF data and fails if it is unusual."""
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    """As transformers' `convert_to_rgb`: puts transparent images on white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")


def _check_pixels(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise _TooManyPixelsError


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a WebP file, as its decoder allocates on opening; (0, 0) for other formats."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(data[24:27], "little") + 1,
            int.from_bytes(data[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return (
        int.from_bytes(data[26:28], "little") & 0x3FFF,
        int.from_bytes(data[28:30], "little") & 0x3FFF,
    )


def _too_many_bytes(size: int, limits: DecodeLimits, field: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"The image has {size} bytes, but at most {limits.max_bytes} are allowed (--max-image-bytes).",
        field=field,
        metadata={"max_bytes": str(limits.max_bytes)},
    )


def _too_many_pixels(limits: DecodeLimits, field: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"The image has more than {limits.max_pixels} pixels, the maximum (--max-image-pixels); send a smaller one.",
        field=field,
        metadata={"max_pixels": str(limits.max_pixels)},
    )


def _digest(pixels: bytes, sizes: tuple[float, ...], policy: ImagePolicy) -> bytes:
    # Includes sizes and mode: without them, different images with the same bytes collide (CVE-2025-46722).
    digest = hashlib.sha256(f"RGB {sizes} {policy}\n".encode())
    digest.update(pixels)
    return digest.digest()
