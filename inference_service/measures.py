"""What the engine measures and tells the front: durations, and the memory of its device."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final


DURATION_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25),
    *(0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Upper bounds of the buckets of `Durations`, inclusive; a last bucket has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long something took, since the start of the process that measured it.

    Attributes:
        counts: The number of durations in each bucket of `DURATION_BOUNDS_S` and in the last one; not cumulative.
        sum_s: Their sum in seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(DURATION_BOUNDS_S) + 1)
    sum_s: float = 0.0


class DurationCounter:
    """Counts durations."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DURATION_BOUNDS_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        self._counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
        self._sum_s += seconds

    @property
    def total(self) -> Durations:
        """What has been counted."""
        return Durations(counts=tuple(self._counts), sum_s=self._sum_s)


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
