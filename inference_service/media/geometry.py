"""Sizes of images: what an image is resized to and how many tokens it takes.

Owns pure arithmetic.
"""

from __future__ import annotations

import math

from inference_service.domain import Detail
from inference_service.errors import InvalidArgumentError, InvalidImageError
from inference_service.model_spec import ImagePolicy, VideoPolicy


MAX_ASPECT_RATIO = 200  # of Qwen2-VL's processor; beyond it the image is refused


def smart_resize(
    height: int,
    width: int,
    *,
    step: int,
    min_pixels: int,
    max_pixels: int,
    frames: int = 1,
    depth: int = 1,
) -> tuple[int, int]:
    """The size an image is resized to: multiples of `step`, area within limits, aspect ratio nearly kept.

    To the digit what transformers' `Qwen2VLImageProcessorPil` computes, its excesses for very flat images
    included: a side is never shorter than one step, so that a flat image may end above `max_pixels`. With frames
    what `smart_resize` of its `Qwen3VLVideoProcessor` computes for sides of at least one step.

    Args:
        height: Pixels, at least 1.
        width: Pixels, at least 1.
        step: Sides of the result are multiples of it.
        min_pixels: Least area of the result, at least 1; of all frames together.
        max_pixels: Greatest area of the result; of all frames together.
        frames: Frames of this size.
        depth: What counts are whole times so many frames.

    Returns:
        (height, width) in pixels.

    Raises:
        InvalidImageError: One side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InvalidImageError(
            f"The image is too flat: one side is more than {MAX_ASPECT_RATIO} times the other."
        )
    rows, columns = round(height / step) * step, round(width / step) * step
    whole = round(frames / depth) * depth * rows * columns
    if whole > max_pixels:
        rows, columns = _rounded_down(height, width, step, max_pixels, frames)
    elif whole < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows = math.ceil(height * grow / step) * step
        columns = math.ceil(width * grow / step) * step
    return rows, columns


def processed_size(
    height: int, width: int, policy: ImagePolicy, *, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size that a model sees: its square, or else that of `smart_resize`.

    But a caller's `min_pixels` never leads above the model's maximum.
    Growing rounds both sides up: asked for the maximum, a flat image would end a tenth above it, and with it above
    what the engine has memory for. Under the model's own `min_pixels` the result is transformers'.

    Args:
        height: Pixels, at least 1.
        width: Pixels, at least 1.
        policy: The model's own limits.
        min_pixels: Least area, as `pixel_budget` gives it.
        max_pixels: Greatest area, as `pixel_budget` gives it.

    Returns:
        (height, width) in pixels.

    Raises:
        InvalidImageError: One side is more than 200 times the other.
    """
    if policy.square_side is not None:
        return policy.square_side, policy.square_side
    step = policy.pixel_step
    rows, columns = smart_resize(
        height, width, step=step, min_pixels=min_pixels, max_pixels=max_pixels
    )
    if min_pixels <= policy.min_pixels or rows * columns <= policy.max_pixels:
        return rows, columns
    return _rounded_down(height, width, step, policy.max_pixels)


def video_size(
    frames: int, height: int, width: int, policy: ImagePolicy, video: VideoPolicy
) -> tuple[int, int]:
    """The size that a model sees of every frame of a video.

    As transformers' `Qwen2VLVideoProcessor` with `cap_pixels_per_frame`, or as its `Qwen3VLVideoProcessor` without.

    Args:
        frames: At least 1.
        height: Pixels of each frame, at least 1.
        width: Pixels of each frame, at least 1.
        policy: The model's step and frames per patch.
        video: The model's limits.

    Returns:
        (height, width) in pixels.

    Raises:
        InvalidImageError: One side is more than 200 times the other.
    """
    step, depth = policy.pixel_step, policy.temporal_patch_size
    least, most = video.min_pixels, video.max_pixels
    if video.total_pixels is not None:
        most = max(min(most, video.total_pixels * depth // frames), int(least * 1.05))
        return smart_resize(height, width, step=step, min_pixels=least, max_pixels=most)
    if min(height, width) < step:
        grow = max(step / height, step / width)
        height, width = int(height * grow), int(width * grow)
    return smart_resize(
        height,
        width,
        step=step,
        min_pixels=least,
        max_pixels=most,
        frames=max(frames, depth),
        depth=depth,
    )


def _rounded_down(
    height: int, width: int, step: int, max_pixels: int, frames: int = 1
) -> tuple[int, int]:
    """Scaled to an area of `max_pixels`, sides rounded down to steps, but never to none."""
    shrink = math.sqrt((frames * height * width) / max_pixels)
    return (
        max(step, math.floor(height / shrink / step) * step),
        max(step, math.floor(width / shrink / step) * step),
    )


def image_grid(height: int, width: int, policy: ImagePolicy) -> tuple[int, int, int]:
    """(1, rows, columns) in patches of an image whose sides are multiples of `policy.pixel_step`."""
    return 1, height // policy.patch_size, width // policy.patch_size


def pixel_budget(
    policy: ImagePolicy,
    detail: Detail,
    min_pixels: int | None,
    max_pixels: int | None,
    *,
    field: str = "",
) -> tuple[int, int]:
    """The least and greatest area of an image after resizing.

    What the caller says beats `detail`, which beats the model's own; nothing exceeds the model's maximum. A limit
    that the caller left open gives way to the one he set.

    Args:
        policy: The model's own limits.
        detail: LOW is a quarter of the model's maximum, never below its minimum.
        min_pixels: The caller's least area, or None.
        max_pixels: The caller's greatest area, or None.
        field: Path of the image in the request, for the error.

    Returns:
        (least, greatest) in pixels.

    Raises:
        InvalidArgumentError: A limit is below 1, or they cross; names the field.
    """
    prefix = f"{field}." if field else ""
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise InvalidArgumentError(f"{name} must be at least 1.", field=prefix + name)
    greatest = policy.max_pixels
    if max_pixels is not None:
        greatest = min(max_pixels, greatest)
    elif detail is Detail.LOW:
        greatest = max(policy.min_pixels, greatest // 4)
    if min_pixels is None:
        return min(policy.min_pixels, greatest), greatest
    least = min(min_pixels, policy.max_pixels)
    if max_pixels is None:
        return least, max(least, greatest)
    if least > greatest:
        raise InvalidArgumentError(
            "min_pixels must not be above max_pixels.", field=f"{prefix}min_pixels"
        )
    return least, greatest
