"""The type of the rules that compute the positions of a prompt's tokens on the three axes of M-RoPE."""

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
axes. A rule imports numpy only when it is applied: commands that read configurations do not need it.
"""
