"""Reads how images and videos are prepared, with the precedence of transformers.

Settings of either kind may be in an object of processor_config.json (saved since transformers 5) or in a file of their
own, and those of videos also in the file of images (before 4.52). The first of these that exists holds alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
import math
from pathlib import Path

from inference_service.families.clip import CLIP_MEAN, CLIP_STD
from inference_service.families.config_file import Section, SpecError, read_config
from inference_service.families.copied_files import (
    IMAGE_FILE,
    PROCESSOR_FILE,
    VIDEO_FILE,
    missing_files,
)
from inference_service.model_spec import ImagePolicy, VideoPolicy


BICUBIC = 3  # PIL.Image.Resampling.BICUBIC in the files
IMAGE_LIMITS = (56 * 56, 28 * 28 * 1280)
"""Minimum and maximum area by default in `Qwen2VLImageProcessor`, the class for all these families."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoDefaults:
    """What a family's video processor does unless a file says otherwise.

    Attributes:
        policy: Its limits hold where the settings have none.
        root_limits: `min_pixels` and `max_pixels` beside `size` are read; else `size` alone.
    """

    policy: VideoPolicy
    root_limits: bool


QWEN2_VIDEO = VideoDefaults(
    policy=VideoPolicy(
        min_pixels=128 * 28 * 28, max_pixels=768 * 28 * 28, total_pixels=16384 * 28 * 28
    ),
    root_limits=True,
)
"""As transformers' `Qwen2VLVideoProcessor` with `cap_pixels_per_frame`."""


def read_image_policy(model_dir: Path, patches: Mapping[str, int], family: str) -> ImagePolicy:
    """Reads how images are prepared.

    Args:
        model_dir: The model's directory.
        patches: `patch_size`, `merge_size` and `temporal_patch_size` of the vision tower.
        family: Name of the family, for messages.

    Raises:
        SpecError: There are no settings, or one is invalid or not supported.
    """
    section = _nested(model_dir, "image_processor")
    if section is None:
        if not (model_dir / IMAGE_FILE).is_file():
            raise SpecError(missing_files(model_dir, family))
        section = read_config(model_dir / IMAGE_FILE)
    section = section.with_defaults({"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)})
    _expect_supported(section, patches)
    minimum, maximum = _limits(section, IMAGE_LIMITS, root=True)
    policy = ImagePolicy(
        patch_size=patches["patch_size"],
        merge_size=patches["merge_size"],
        temporal_patch_size=patches["temporal_patch_size"],
        min_pixels=minimum,
        max_pixels=maximum,
        mean=section.three_numbers("image_mean"),
        std=section.three_numbers("image_std"),
    )
    if 0.0 in policy.std:
        raise SpecError(f"{section.where}: image_std must not contain 0")
    return policy


def read_video_policy(
    model_dir: Path, images: ImagePolicy, patches: Mapping[str, int], defaults: VideoDefaults
) -> VideoPolicy:
    """Reads how videos are prepared; without settings of their own, those of images hold.

    Args:
        model_dir: The model's directory.
        images: How images are prepared.
        patches: See `read_image_policy`.
        defaults: The family's.

    Raises:
        SpecError: A setting is invalid or not supported.
    """
    section = _video_section(model_dir)
    _expect_supported(section, patches)
    for key, wanted in (("image_mean", images.mean), ("image_std", images.std)):
        if key in section and section.three_numbers(key) != wanted:
            raise SpecError(
                f"{section.where}: {key} is {section.values[key]}; only that of images, {list(wanted)}, is supported"
            )
    policy = defaults.policy
    limits = (policy.min_pixels, policy.max_pixels)
    minimum, maximum = _limits(section, limits, root=defaults.root_limits)
    return replace(policy, min_pixels=minimum, max_pixels=maximum)


def _nested(model_dir: Path, key: str) -> Section | None:
    """The settings at `key` of processor_config.json, which older versions wrote without them."""
    if not (model_dir / PROCESSOR_FILE).is_file():
        return None
    section = read_config(model_dir / PROCESSOR_FILE)
    return section.section(key) if key in section else None


def _video_section(model_dir: Path) -> Section:
    section = _nested(model_dir, "video_processor")
    for name in (VIDEO_FILE, IMAGE_FILE):
        if section is None and (model_dir / name).is_file():
            section = read_config(model_dir / name)
    if section is None:
        section = read_config(model_dir / PROCESSOR_FILE).section("image_processor")
    return section


def _expect_supported(section: Section, patches: Mapping[str, int]) -> None:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        section.expect(step, wanted=True)
    section.expect("resample", BICUBIC)
    if not math.isclose(section.number("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        section.expect("rescale_factor", 1 / 255)
    for key, size in patches.items():
        section.expect(key, size)


def _limits(section: Section, default: tuple[int, int], *, root: bool) -> tuple[int, int]:
    """Minimum and maximum area: of `size`, over which `min_pixels` and `max_pixels` beside it take precedence."""
    limits = []
    for edge, pixels, fallback in (
        ("shortest_edge", "min_pixels", default[0]),
        ("longest_edge", "max_pixels", default[1]),
    ):
        if root and pixels in section:
            limits.append(section.integer(pixels))
        elif "size" in section:
            size = section.section("size")
            # transformers 4.45 wrote `size` with the names of the other two.
            limits.append(size.integer(edge if edge in size or pixels not in size else pixels))
        else:
            limits.append(fallback)
    if limits[0] > limits[1]:
        raise SpecError(
            f"{section.where}: the minimum area (min_pixels, else shortest_edge of size) is {limits[0]},"
            f" above the maximum (max_pixels, else longest_edge) of {limits[1]}"
        )
    return limits[0], limits[1]
