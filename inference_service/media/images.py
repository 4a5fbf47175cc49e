"""Prepared images and the limits on images as sent: what front and decoder share, without Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib

from inference_service.media.geometry import image_grid
from inference_service.model_spec import ImagePolicy, VideoPolicy


Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """Limits on an image as sent: bytes of the file, pixels in its header."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


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

    pixels: bytes | memoryview
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


def processed_image(
    frames: Sequence[bytes],
    original: Size,
    size: Size,
    policy: ImagePolicy,
    *,
    is_video: bool = False,
    time_step: float = 1.0,
) -> ProcessedImage:
    """An image, or a piece of a video, of resized frames: grid, tokens and digest."""
    times = -(-len(frames) // policy.temporal_patch_size)
    grid = (times, *image_grid(*size, policy)[1:])
    pixels = frames[0] if len(frames) == 1 else b"".join(frames)
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


def _digest(pixels: bytes, sizes: tuple[float, ...], policy: ImagePolicy) -> bytes:
    # Includes sizes and mode: without them, different images with the same bytes collide (CVE-2025-46722).
    digest = hashlib.sha256(f"RGB {sizes} {policy}\n".encode())
    digest.update(pixels)
    return digest.digest()
