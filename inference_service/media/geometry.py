"""Computes the sizes to which images and video frames are resized."""

from __future__ import annotations

import math

from inference_service.domain import Detail
from inference_service.errors import (
    InvalidArgumentError,
    InvalidImageError,
    UnsupportedParameterError,
)
from inference_service.model_spec import ImagePolicy, VideoPolicy


MAX_ASPECT_RATIO = 200  # the limit of Qwen2-VL's processor


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
    """Computes the new size of an image: multiples of `step`, area within limits, aspect ratio nearly kept.

    Equal to transformers' `Qwen2VLImageProcessorPil`, also for very elongated images: a side is never shorter than one
    step, so that their area may exceed `max_pixels`. With frames, equal to `smart_resize` of its
    `Qwen3VLVideoProcessor` for sides of at least one step.

    Args:
        height: Pixels, at least 1.
        width: Pixels, at least 1.
        step: The sides of the result are multiples of it.
        min_pixels: Minimum area of the result, at least 1; of all frames together.
        max_pixels: Maximum area of the result; of all frames together.
        frames: Number of frames of this size.
        depth: The number of frames is rounded to a multiple of this.

    Returns:
        (height, width) in pixels.

    Raises:
        InvalidImageError: One side is more than 200 times as long as the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise InvalidImageError(
            f"The image has {width} x {height} pixels, but one side may be at most {MAX_ASPECT_RATIO} times as long as"
            " the other."
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
    """The size of an image for the model: its fixed square, or else that of `smart_resize`.

    Unlike in `smart_resize`, a caller's `min_pixels` never leads to an area above the model's maximum, for which the
    engine has no memory: enlarging rounds both sides up. With the model's own `min_pixels` the result is transformers'.

    Args:
        height: Pixels, at least 1.
        width: Pixels, at least 1.
        policy: The model's limits.
        min_pixels: Minimum area, from `pixel_budget`.
        max_pixels: Maximum area, from `pixel_budget`.

    Returns:
        (height, width) in pixels.

    Raises:
        InvalidImageError: One side is more than 200 times as long as the other.
    """
    if policy.square_side is not None:
        return policy.square_side, policy.square_side
    if policy.as_decoded:
        return height, width
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
    """The size of every frame of a video for the model.

    As transformers' `Qwen2VLVideoProcessor` with `cap_pixels_per_frame`, or as its `Qwen3VLVideoProcessor` without.

    Args:
        frames: Number of frames, at least 1.
        height: Pixels of each frame, at least 1.
        width: Pixels of each frame, at least 1.
        policy: The model's step and frames per patch.
        video: The model's limits.

    Returns:
        (height, width) in pixels.

    Raises:
        InvalidImageError: One side is more than 200 times as long as the other.
    """
    if policy.as_decoded:
        return height, width
    step, depth = policy.pixel_step, policy.temporal_patch_size
    minimum, maximum = video.min_pixels, video.max_pixels
    if video.total_pixels is not None:
        maximum = max(min(maximum, video.total_pixels * depth // frames), int(minimum * 1.05))
        return smart_resize(height, width, step=step, min_pixels=minimum, max_pixels=maximum)
    if min(height, width) < step:
        grow = max(step / height, step / width)
        height, width = int(height * grow), int(width * grow)
    return smart_resize(
        height,
        width,
        step=step,
        min_pixels=minimum,
        max_pixels=maximum,
        frames=max(frames, depth),
        depth=depth,
    )


def _rounded_down(
    height: int, width: int, step: int, max_pixels: int, frames: int = 1
) -> tuple[int, int]:
    """Scales to an area of `max_pixels`; rounds sides down to multiples of `step`, but not below one step."""
    shrink = math.sqrt((frames * height * width) / max_pixels)
    return (
        max(step, math.floor(height / shrink / step) * step),
        max(step, math.floor(width / shrink / step) * step),
    )


def largest_size(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """The largest size of an image's aspect ratio with at most `max_pixels`; both sides rounded down, but not below 1.

    Args:
        height: Pixels, at least 1.
        width: Pixels, at least 1.
        max_pixels: Maximum area, at least 1.

    Returns:
        (height, width) in pixels.
    """
    if height * width <= max_pixels:
        return height, width
    # In integers, as floating-point roots may be rounded up.
    rows = math.isqrt(max_pixels * height // width)
    columns = math.isqrt(max_pixels * width // height)
    return min(max(rows, 1), max_pixels), min(max(columns, 1), max_pixels)


def image_grid(height: int, width: int, policy: ImagePolicy) -> tuple[int, int, int]:
    """(1, rows, columns) in patches of an image with sides that are multiples of `policy.pixel_step`."""
    return 1, height // policy.patch_size, width // policy.patch_size


def pixel_budget(
    policy: ImagePolicy,
    detail: Detail,
    min_pixels: int | None,
    max_pixels: int | None,
    *,
    field: str = "",
) -> tuple[int, int]:
    """The minimum and maximum area of an image after resizing.

    The caller's limits take precedence over `detail`, and `detail` over the model's limits; nothing exceeds the model's
    maximum. If the caller sets only one limit, the other is adjusted to it.

    Args:
        policy: The model's limits.
        detail: LOW is a quarter of the model's maximum, never below its minimum.
        min_pixels: The caller's minimum area, or None.
        max_pixels: The caller's maximum area, or None.
        field: Path of the image in the request, for the error.

    Returns:
        (minimum, maximum) in pixels.

    Raises:
        InvalidArgumentError: A limit is below 1, or the minimum exceeds the maximum; names the field.
        UnsupportedParameterError: The caller sets a limit, but the engine prepares the images, by the model's alone.
    """
    prefix = f"{field}." if field else ""
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and policy.as_decoded:
            raise UnsupportedParameterError(
                f"{name} is not supported with --backend transformers: images have the sizes that the model's own"
                " processor gives them.",
                field=prefix + name,
            )
        if value is not None and value < 1:
            raise InvalidArgumentError(
                f"{name} is {value}, but must be at least 1.", field=prefix + name
            )
    maximum = policy.max_pixels
    if max_pixels is not None:
        maximum = min(max_pixels, maximum)
    elif detail is Detail.LOW:
        maximum = max(policy.min_pixels, maximum // 4)
    if min_pixels is None:
        return min(policy.min_pixels, maximum), maximum
    minimum = min(min_pixels, policy.max_pixels)
    if max_pixels is None:
        return minimum, max(minimum, maximum)
    if minimum > maximum:
        raise InvalidArgumentError(
            f"min_pixels is {min_pixels}, but must not exceed max_pixels, which is {max_pixels}.",
            field=f"{prefix}min_pixels",
        )
    return minimum, maximum
