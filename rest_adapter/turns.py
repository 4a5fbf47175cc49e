"""Lets connections parse what they have received in turn, so that none of them takes the event loop from the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
import time
from typing import Final


MAX_S: Final = 0.002
"""Time for parsing in one iteration of the event loop."""


class Turns:
    """A queue of connections that have more to parse than one slice.

    Args:
        clock: Seconds from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], bool]] = deque()
        self._scheduled = False

    def wait(self, parse: Callable[[], bool]) -> None:
        """Adds a connection to the end of the queue.

        Args:
            parse: Parses one slice; returns whether that has begun a request. Of these only one begins in an iteration.
        """
        self._waiting.append(parse)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        end = self._clock() + MAX_S
        try:
            while self._waiting:
                if self._waiting.popleft()() or self._clock() > end:
                    break
        finally:
            self._scheduled = False
            self._schedule()
