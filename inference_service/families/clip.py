"""The images of vision towers that descend from CLIP: squares of one size with CLIP's normalisation."""

from __future__ import annotations

from inference_service.model_spec import ImagePolicy


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def clip_image_policy(
    *, patch_size: int, patches_per_side: int, num_tokens: int, max_images: int | None = None
) -> ImagePolicy:
    """The policy for images that are resized to one square, as by torchvision without EXIF and alpha handling.

    Args:
        patch_size: Side of a patch in pixels.
        patches_per_side: Patches along a side of the square.
        num_tokens: Tokens of an image.
        max_images: Maximum number of images in a request; None = no limit.
    """
    side = patches_per_side * patch_size
    return ImagePolicy(
        patch_size=patch_size,
        merge_size=1,
        temporal_patch_size=1,
        min_pixels=side**2,
        max_pixels=side**2,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        exif_transpose=False,
        white_background=False,
        square_side=side,
        num_tokens=num_tokens,
        max_images=max_images,
    )
