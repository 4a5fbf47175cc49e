"""What the engine measures and tells the front, and the fixed sets of reasons by which it is counted."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


DURATION_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper bounds of the buckets for durations in seconds, inclusive; a last bucket has none."""
BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""The same for numbers of sequences in one step."""
PREFIX_MISS_REASONS: Final = ("new", "evicted", "partial_page", "prompt_logprobs", "disabled")
"""Why prompt tokens were not taken from the prefix cache.

new: their page has not been computed, or long ago. evicted: it was, and twice the cache would still have it.
partial_page: only full pages are shared, and the last token of a prompt is always computed. prompt_logprobs: a request
for log probabilities of its prompt computes all of it. disabled: there is no prefix cache.
"""
ENCODER_MISS_REASONS: Final = ("new", "evicted")
"""Why images were encoded; as the first two reasons above."""
RESTART_CAUSES: Final = ("ended", "stalled", "not_loaded")
"""Why the engine process was restarted: it ended by itself, made no progress, or could not load the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """What has been measured since the start of the process that measured it.

    Attributes:
        counts: The number of values in each bucket of its bounds and in the last one, not cumulative; empty = none.
        total: The sum of the values.
    """

    counts: tuple[int, ...] = ()
    total: float = 0.0


class HistogramCounter:
    """Counts values, by the upper bounds of its buckets."""

    def __init__(self, bounds: Sequence[float] = DURATION_BOUNDS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    @property
    def total(self) -> Histogram:
        """What has been counted."""
        return Histogram(counts=tuple(self._counts), total=self._total)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Memory of a GPU in bytes.

    Attributes:
        allocated: In use by tensors of the engine.
        reserved: Held by the engine's allocator.
        total: Of the device.
    """

    allocated: int
    reserved: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceTimings:
    """How long a choice took until its first token, in seconds by the engine's clock.

    Attributes:
        queue_s: From its arrival in the engine to its first admission to the batch.
        prefill_s: From there to its first token, which was read from the device.
        encode_s: Of the latter, the time of the vision encoder on its images and on those of others encoded with them.
    """

    queue_s: float
    prefill_s: float
    encode_s: float = 0.0
