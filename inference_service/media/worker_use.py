"""What callers have lately used of the decode workers, which decides who is next."""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import Final


_HALF_LIFE_S: Final = 30.0
_LEAST_S: Final = 0.01
_DISTRUST_S: Final = 60.0


class WorkerUse:
    """The time that callers have used, half of which is forgotten every `_HALF_LIFE_S`.

    Args:
        clock: The time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, tuple[float, float]] = {}  # seconds, and when they were that many
        self._distrusted: dict[str, float] = {}  # until when

    def add(self, caller: str, seconds: float) -> None:
        """Counts time on a worker."""
        now_s = self._clock()
        self._used[caller] = (self.seconds(caller) + seconds, now_s)
        self._used = {who: self._used[who] for who in self._used if self.seconds(who) > _LEAST_S}

    def seconds(self, caller: str) -> float:
        """What a caller has lately used."""
        seconds, when_s = self._used.get(caller, (0.0, 0.0))
        return float(seconds * 0.5 ** ((self._clock() - when_s) / _HALF_LIFE_S))

    def distrust(self, caller: str) -> None:
        """For a while, no image of this caller is taken as cheap, unless the caller is unknown and may be many."""
        now_s = self._clock()
        self._distrusted = {who: end for who, end in self._distrusted.items() if end > now_s}
        if caller:
            self._distrusted[caller] = now_s + _DISTRUST_S

    def trusts(self, caller: str) -> bool:
        """Whether a caller's images cost what their headers say."""
        return self._clock() >= self._distrusted.get(caller, 0.0)
