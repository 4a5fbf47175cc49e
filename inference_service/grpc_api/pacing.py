"""Slows callers down that repeat refused requests at once, so that refusing them costs the others nothing."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
import time
from typing import Final


_FREE_PER_S: Final = 20.0
_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 5.0
"""A hundred callers with one key are refused twenty times a second then, each for a millisecond."""
_MAX_CALLERS: Final = 1000
_MAX_WAITING: Final = 4000


class RefusalPacing:
    """Delays the answers to a caller's refusals, the more the faster they come. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._recent: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._waiting = 0

    def delay_s(self, caller: str) -> float:
        """Counts a refusal and returns how long its answer is to wait; the first of each second do not."""
        then, count = self._recent.get(caller, (0.0, 0.0))
        now = self._clock()
        count = max(0.0, count - (now - then) * _FREE_PER_S) + 1.0
        self._recent[caller] = (now, count)
        self._recent.move_to_end(caller)
        while len(self._recent) > _MAX_CALLERS:
            self._recent.popitem(last=False)
        return min(max(0.0, count - _FREE_PER_S) * _DELAY_S, _MAX_DELAY_S)

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
