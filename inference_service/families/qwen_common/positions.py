"""Positions of Qwen2-VL and its successors: M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference_service.engine_protocol.messages import ImageSpan


if TYPE_CHECKING:
    from inference_service.families.positions import Positions


def mrope_positions(num_tokens: int, images: Sequence[ImageSpan], merge_size: int) -> Positions:
    """The `PositionRule` of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (arXiv 2409.12191; transformers' `get_rope_index`).

    Text has the same position on all axes. The tokens of an image add their time, merged row and merged column to the
    position at which it starts; the text after it continues from the largest position on any axis.

    transformers since 5.3 continues from rows and columns only, even where a video's time axis is longer
    (transformers#45381); the models were trained with the rule here.
    """
    import numpy as np

    positions = np.empty((3, num_tokens), dtype=np.int64)
    token, position = 0, 0  # the next token without a position, and its position if it is text
    for image in images:
        text = image.start - token
        positions[:, token : image.start] = np.arange(position, position + text)
        position += text
        rows, columns = image.grid[1] // merge_size, image.grid[2] // merge_size
        token = image.start + image.num_tokens
        here = positions[:, image.start : token].reshape(3, -1, rows, columns)
        # In float32 as in the reference: steps may be fractions, and rounding decides the position.
        times = np.arange(image.grid[0], dtype=np.float32) * np.float32(image.time_step)
        here[0] = position + times.astype(np.int64)[:, None, None]
        here[1] = position + np.arange(rows)[:, None]
        here[2] = position + np.arange(columns)
        positions[:, image.start : token] = here.reshape(3, -1)
        position = int(here.max()) + 1
    positions[:, token:] = np.arange(position, position + num_tokens - token)
    return positions, position - token
