"""Slows callers down that repeat refused requests at once, so that refusing them costs the others nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
import time
from typing import Final


_FREE_PER_S: Final = 10.0
_MAX_DELAY_S: Final = 10.0
"""A hundred callers with one key are refused some ten times a second then, each for two or three milliseconds."""
_FREE_OF_ALL_PER_S: Final = 10.0
_FREE_OF_ALL_PER_ADMITTED: Final = 0.5
"""Callers that wait as they are told are refused about as often as others are admitted."""
_MOST: Final = 1 + _MAX_DELAY_S
_MAX_CALLERS: Final = 1000
_MAX_WAITING: Final = 4000


class RefusalPacing:
    """Delays the answers to refusals, the more the faster they come: those of a caller, and those of all together.

    Belongs to one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all = (0.0, 0.0)  # when the last one was, and how many have not been let off since
        self._recent: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._waiting = 0

    def delay_s(self, caller: str) -> float:
        """Counts a refusal and returns how long its answer is to wait; the first of each second do not."""
        own = self._counted(self._recent.pop(caller, (0.0, 0.0)), _FREE_PER_S)
        if own[1] <= _FREE_PER_S:  # else it is delayed for itself, and must not delay the others
            self._all = self._counted(self._all, _FREE_OF_ALL_PER_S)
        self._recent[caller] = own
        while len(self._recent) > _MAX_CALLERS:
            self._recent.popitem(last=False)
        delay_s = (own[1] - _FREE_PER_S) / _FREE_PER_S
        delay_of_all_s = (self._all[1] - _FREE_OF_ALL_PER_S) / _FREE_OF_ALL_PER_S
        return min(max(0.0, delay_s, delay_of_all_s), _MAX_DELAY_S)

    def admitted(self) -> None:
        """Counts a request that was not refused: the more there are, the more refusals are let off."""
        then, count = self._all
        self._all = then, max(0.0, count - _FREE_OF_ALL_PER_ADMITTED)

    def is_over(self, caller: str) -> bool:
        """Whether a caller's refusals have come so fast lately that further ones are delayed."""
        return self._recent.get(caller, (0.0, 0.0))[1] > _FREE_PER_S

    def _counted(self, before: tuple[float, float], free_per_s: float) -> tuple[float, float]:
        then, count = before
        now = self._clock()
        # Not more than what the longest delay needs, so that it is over soon after the flood.
        return now, min(max(0.0, count - (now - then) * free_per_s) + 1.0, free_per_s * _MOST)

    async def wait(self, caller: str) -> None:
        """Waits before a refusal is answered."""
        delay_s = self.delay_s(caller)
        if not delay_s or self._waiting >= _MAX_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            self._waiting -= 1
