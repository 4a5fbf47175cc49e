"""Positions of GLM-4V-9B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference_service.engine_protocol.messages import ImageSpan


if TYPE_CHECKING:
    from inference_service.families.positions import Positions


def one_for_all_patches(num_tokens: int, images: Sequence[ImageSpan], merge_size: int) -> Positions:
    """The `PositionRule` of GLM-4V-9B: an image takes three positions, the same on all axes: begin, patches, end."""
    import numpy as np

    del merge_size
    steps = np.ones(num_tokens, dtype=np.int64)
    for image in images:
        steps[image.start + 2 : image.start + image.num_tokens - 1] = 0
    positions = steps.cumsum() - 1
    return np.tile(positions, (3, 1)), int(positions[-1]) + 1 - num_tokens
