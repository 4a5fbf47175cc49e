"""Positions of Qwen-VL (2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference_service.engine_protocol.messages import ImageSpan


if TYPE_CHECKING:
    from inference_service.families.positions import Positions


def sequential_positions(
    num_tokens: int, images: Sequence[ImageSpan], merge_size: int
) -> Positions:
    """The `PositionRule` of Qwen-VL (2023): images are counted like text, the same on all axes."""
    import numpy as np

    del images, merge_size
    return np.tile(np.arange(num_tokens, dtype=np.int64), (3, 1)), 0
