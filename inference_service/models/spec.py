"""What a checkpoint is, read from its configuration files; torch-free, so that the front can read it too.

Owns the values that describe a model. Must not know torch, tensors or requests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """How a family wants its pictures, from preprocessor_config.json and the family's own rules.

    Attributes:
        patch_size: Side of a vision patch in pixels.
        merge_size: Patches per side that become one token.
        temporal_patch_size: Frames per patch; a still picture is repeated.
        min_pixels: Least area after resizing.
        max_pixels: Greatest area after resizing.
        mean: Per channel, of values in 0..1.
        std: Per channel, of values in 0..1.
        exif_transpose: Apply the EXIF orientation when decoding.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exif_transpose: bool = True

    @property
    def pixel_step(self) -> int:
        """Sides of a processed picture are multiples of this."""
        return self.patch_size * self.merge_size
