"""Positions of the tokens of a prompt on the three axes of M-RoPE.

Owns the rule of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (arXiv 2409.12191; `get_rope_index` in transformers): text counts
on all axes alike; an image's tokens count their time, merged row and merged column from there; text after it goes on
behind the greatest of all axes.

transformers since 5.3 lets text go on behind rows and columns only, even where a video's time axis is longer
(transformers#45381); the models were trained with the rule here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from inference_service.engine_protocol.messages import ImageSpan


def mrope_positions(
    num_tokens: int, images: Sequence[ImageSpan], merge_size: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Positions of a prompt.

    Args:
        num_tokens: Tokens of the prompt.
        images: Its images in order of `start`.
        merge_size: Patches per side that become one token.

    Returns:
        [3, num_tokens] (time, height, width), and delta: a token generated at index i has position i + delta
        on all axes.
    """
    positions = np.empty((3, num_tokens), dtype=np.int64)
    token, position = 0, 0  # the next token to be placed and the position it would have as text
    for image in images:
        text = image.start - token
        positions[:, token : image.start] = np.arange(position, position + text)
        position += text
        rows, columns = image.grid[1] // merge_size, image.grid[2] // merge_size
        token = image.start + image.num_tokens
        here = positions[:, image.start : token].reshape(3, -1, rows, columns)
        # In float32 as the reference: a step need not be whole, and rounding decides which position it meets.
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
) -> tuple[npt.NDArray[np.int64], int]:
    """Positions of a prompt whose images count like text, on all axes alike: Qwen-VL (2023)."""
    del images, merge_size
    return np.tile(np.arange(num_tokens, dtype=np.int64), (3, 1)), 0


def one_for_all_patches(
    num_tokens: int, images: Sequence[ImageSpan], merge_size: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Positions of a prompt whose images take three places, on all axes alike: begin, patches, end (GLM-4V-9B)."""
    del merge_size
    steps = np.ones(num_tokens, dtype=np.int64)
    for image in images:
        steps[image.start + 2 : image.start + image.num_tokens - 1] = 0
    positions = steps.cumsum() - 1
    return np.tile(positions, (3, 1)), int(positions[-1]) + 1 - num_tokens


POSITION_RULES = {
    "mrope": mrope_positions,
    "one_for_all_patches": one_for_all_patches,
    "sequential": sequential_positions,
}
"""By the name in `ModelSpec.position_rule`."""
