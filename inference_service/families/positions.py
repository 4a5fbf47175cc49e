"""Rules that compute the positions of a prompt's tokens on the three axes of M-RoPE.

numpy is imported only when a rule is applied: commands that read configurations do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from inference_service.engine_protocol.messages import ImageSpan


if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Positions = tuple[npt.NDArray[np.int64], int]

PositionRule = Callable[[int, Sequence[ImageSpan], int], "Positions"]
"""Takes the number of tokens of a prompt, its images in order of `start`, and the patches per side of a token.

Returns [3, num_tokens] (time, height, width), and delta: a token generated at index i has position i + delta on all
axes.
"""


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


def sequential_positions(
    num_tokens: int, images: Sequence[ImageSpan], merge_size: int
) -> Positions:
    """The `PositionRule` of Qwen-VL (2023): images are counted like text, the same on all axes."""
    import numpy as np

    del images, merge_size
    return np.tile(np.arange(num_tokens, dtype=np.int64), (3, 1)), 0


def one_for_all_patches(num_tokens: int, images: Sequence[ImageSpan], merge_size: int) -> Positions:
    """The `PositionRule` of GLM-4V-9B: an image takes three positions, the same on all axes: begin, patches, end."""
    import numpy as np

    del merge_size
    steps = np.ones(num_tokens, dtype=np.int64)
    for image in images:
        steps[image.start + 2 : image.start + image.num_tokens - 1] = 0
    positions = steps.cumsum() - 1
    return np.tile(positions, (3, 1)), int(positions[-1]) + 1 - num_tokens
