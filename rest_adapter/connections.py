"""Bounds the number of connections, so that those that do nothing never keep others out."""

from __future__ import annotations

from collections.abc import Callable
import time
from typing import Final


MAX_CONNECTIONS: Final = 4096
"""An idle one takes some 6 KiB."""

IDLE_S: Final = 5.0
"""A connection between two requests is not closed earlier to make room for another."""


class Connections:
    """All connections. When there are too many, a new one takes the place of one that has not yet sent a request.

    If there is none, it takes the place of that which has been idle for longest, if this is long enough.

    Args:
        maximum: Maximum number of connections.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._close: dict[object, Callable[[], None]] = {}
        self._new: dict[object, None] = {}
        self._idle: dict[object, float] = {}

    def add(self, connection: object, close: Callable[[], None]) -> bool:
        """Adds a new connection; returns False if there is no room.

        Args:
            connection: The connection.
            close: Closes it.
        """
        if len(self._close) >= self.maximum and not self._make_room():
            return False
        self._close[connection] = close
        self._new[connection] = None
        return True

    def set_busy(self, connection: object) -> None:
        """Notes that a request has begun."""
        self._new.pop(connection, None)
        self._idle.pop(connection, None)

    def set_idle(self, connection: object) -> None:
        """Notes that a response is complete."""
        if connection in self._close:
            self._idle[connection] = time.monotonic()

    def remove(self, connection: object) -> None:
        """Forgets a connection."""
        for each in (self._close, self._new, self._idle):
            each.pop(connection, None)

    def _make_room(self) -> bool:
        oldest = next(iter(self._new), None)
        if oldest is None:
            oldest, since = next(iter(self._idle.items()), (None, 0.0))
            if oldest is None or time.monotonic() - since < IDLE_S:
                return False
        close = self._close[oldest]
        self.remove(oldest)
        close()
        return True
