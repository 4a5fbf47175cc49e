"""Keys of the noise for sampling, which depends only on (seed, choice, position) and the token id.

The noise itself is that of `kernels.choice`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt


MASK_64: Final = 2**64 - 1
_STEP: Final = 0x9E3779B97F4A7C15
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


def noise_state(seed: int, choice_index: int) -> int:
    """The part of the key that is the same for all positions: 64 bits of SplitMix64."""
    state = 0
    for number in (seed, choice_index):
        state = (state + number + _STEP) & MASK_64
        state = ((state ^ (state >> 30)) * _FIRST) & MASK_64
        state = ((state ^ (state >> 27)) * _SECOND) & MASK_64
        state ^= state >> 31
    return state


def noise_keys(
    states: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Low and high half of the keys of R (state, position) pairs: [R] each."""
    state = states + positions.astype(np.uint64) + np.uint64(_STEP)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    state ^= state >> np.uint64(31)
    halves = state.view(np.int32).reshape(-1, 2)
    return halves[:, 0], halves[:, 1]
