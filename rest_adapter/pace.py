"""How slow a client may be with what it sends or reads."""

from __future__ import annotations

from collections.abc import Callable
import math
import time


class Pace:
    """Demands a mean rate over every time of silence that is allowed, or since the beginning.

    What came faster than it had to is not saved up: after most of a body in a second, a client could stop for an hour.
    What is sent is saved up, because the system takes it at once while it has buffers, and nothing more until a part of
    them has been read.

    Args:
        silence_s: Maximum time without a byte.
        bytes_per_s: Minimum rate.
        saved: Whether bytes that come faster than they have to are saved up.
        clock: Seconds from any beginning.
    """

    def __init__(
        self,
        silence_s: float,
        bytes_per_s: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        saved: bool = False,
    ) -> None:
        self._most_s = math.inf if saved else silence_s
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._until_s = clock() + silence_s

    def note(self, count: int) -> None:
        """Notes bytes that came now."""
        latest_s = self._clock() + self._most_s
        self._until_s = min(self._until_s + count / self._bytes_per_s, latest_s)

    @property
    def left_s(self) -> float:
        """How long the next bytes may take from now on; at least 0."""
        return max(0.0, self._until_s - self._clock())
