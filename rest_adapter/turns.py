"""Lets connections parse what they have received in turn, so that none of them takes the event loop from the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
import time
from typing import Final


MAX_S: Final = 0.002
"""Time for parsing in one iteration of the event loop."""

MAX_AT_ONCE: Final = 64
"""Connections whose few bytes are parsed at once in one iteration; a request takes some 0.5 ms until it is awaited."""


class Turns:
    """Queues of connections that have more to parse than one slice, or much company; callers take turns.

    Args:
        clock: Seconds from any beginning.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[
            str, deque[Callable[[], bool]]
        ] = {}  # the caller of the next turn is first
        self._scheduled = False
        self._at_once = 0

    def may_go_first(self) -> bool:
        """Whether a connection with few bytes may parse them now: not if very many have done so in this iteration."""
        if not self._at_once:
            asyncio.get_running_loop().call_soon(self._begin_iteration)
        self._at_once += 1
        return self._at_once <= MAX_AT_ONCE

    def _begin_iteration(self) -> None:
        self._at_once = 0

    def wait(self, parse: Callable[[], bool], caller: str = "") -> None:
        """Adds a connection to the end of its caller's queue.

        Args:
            parse: Parses one slice; returns whether that has begun a request. Of these only one begins in an iteration.
            caller: Whose connection it is; empty = not known yet.
        """
        self._waiting.setdefault(caller, deque()).append(parse)
        self._schedule()

    def _schedule(self) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        end = self._clock() + MAX_S
        try:
            while self._waiting:
                if self._next()() or self._clock() > end:
                    break
        finally:
            self._scheduled = False
            self._schedule()

    def _next(self) -> Callable[[], bool]:
        caller, queue = next(iter(self._waiting.items()))
        del self._waiting[caller]
        parse = queue.popleft()
        if queue:
            self._waiting[caller] = queue
        return parse
