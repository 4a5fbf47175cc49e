"""Bounds the number of connections, so that neither those that do nothing nor those of one caller keep others out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import math
import time
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from rest_adapter.dialect import error_response
from rest_adapter.errors import of_reason


MAX_CONNECTIONS: Final = 4096
"""An idle one takes some 6 KiB."""

IDLE_S: Final = 5.0
"""A connection between two requests is not closed earlier to make room for another."""

_STRANGERS: Final = 8
"""This part of the connections is left to those whose caller is not known yet."""


class Connections:
    """All connections. When there are too many, a new one takes the place of one that has not yet sent a request.

    If there is none, it takes that of one without a known caller, or else of that which has been idle for longest, if
    this is long enough. Known callers share most of the connections: when these are used, a caller with fewer takes the
    place of one of the caller with the most, and that caller one of its own: of the one that has been idle for longest;
    with fewer also of the newest one.

    Args:
        maximum: Maximum number of connections.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self._close: dict[object, Callable[[], None]] = {}
        self._new: dict[object, None] = {}
        self._strange: dict[object, None] = {}  # requests have come, but none of a known caller
        self._idle: dict[object, float] = {}
        self._callers: dict[object, str] = {}
        self._of_caller: dict[str, dict[object, None]] = {}

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
        if connection in self._new:
            del self._new[connection]
            self._strange[connection] = None
        self._idle.pop(connection, None)

    def set_caller(self, connection: object, caller: str) -> bool:
        """Notes whose request has begun; returns False if the caller has its share of the connections."""
        known = self._callers.get(connection)
        if known == caller or connection not in self._close:
            return True
        if known is not None:
            self._forget_caller(connection)
        mine = self._of_caller.get(caller, {})
        if len(self._callers) >= self.maximum - self.maximum // _STRANGERS:
            greedy = max(self._of_caller.values(), key=len)
            if len(greedy) <= len(mine) + 1:
                greedy = mine
            victim = self._longest_idle(greedy)
            if victim is None and greedy is mine:
                return False
            self._drop(victim or next(reversed(greedy)))
        self._strange.pop(connection, None)
        self._callers[connection] = caller
        self._of_caller.setdefault(caller, {})[connection] = None
        return True

    def _longest_idle(self, connections: Iterable[object]) -> object | None:
        """Which has been idle for longest, if this is long enough."""
        idle = ((self._idle[one], one) for one in connections if one in self._idle)
        since, longest = min(idle, key=lambda pair: pair[0], default=(math.inf, None))
        return longest if time.monotonic() - since >= IDLE_S else None

    def caller_of(self, connection: object) -> str:
        """Whose request came last over a connection; empty = it is not known."""
        return self._callers.get(connection, "")

    def set_idle(self, connection: object) -> None:
        """Notes that a response is complete."""
        if connection in self._close:
            self._idle[connection] = time.monotonic()

    def remove(self, connection: object) -> None:
        """Forgets a connection."""
        for each in (self._close, self._new, self._strange, self._idle):
            each.pop(connection, None)
        self._forget_caller(connection)

    def _forget_caller(self, connection: object) -> None:
        caller = self._callers.pop(connection, None)
        if caller is not None:
            del self._of_caller[caller][connection]
            if not self._of_caller[caller]:
                del self._of_caller[caller]

    def _make_room(self) -> bool:
        oldest = next(iter(self._new or self._strange), None)
        if oldest is None:
            oldest, since = next(iter(self._idle.items()), (None, 0.0))
            if oldest is None or time.monotonic() - since < IDLE_S:
                return False
        self._drop(oldest)
        return True

    def _drop(self, connection: object) -> None:
        close = self._close[connection]
        self.remove(connection)
        close()


class ShareConnections:
    """ASGI middleware that tells `Connections` whose requests come, and refuses a caller that has its share of them.

    Callers are told apart by their keys, which have been checked; without keys by their hosts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        state = scope.get("state", {})
        set_caller: Callable[[str], bool] | None = state.get("set_caller")
        if set_caller is not None and state["is_known"] and not set_caller(state["caller"]):
            error = of_reason(
                "QUEUE_FULL",
                "You have your share of the connections; close some, or use them again.",
            )
            error.headers["connection"] = "close"
            await error_response(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
