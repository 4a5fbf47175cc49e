"""The line for something that callers share fairly: places in the engine's batch, its KV cache, workers.

No more requests are given to the engine than it can compute at once and a few more. The next one is of the caller that
has the fewest places, of equal ones the one whose last turn is longest ago; and of its requests it is the one with the
lowest priority number, now and then the oldest.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
import contextlib
from dataclasses import dataclass
import time
from typing import Final


_MIN_SHARE: Final = 4
"""One caller may have the `_MIN_SHARE`th part of the places, however many others there are."""
_OLDEST_EVERY: Final = 4
"""One in so many turns of a caller is that of its oldest request, whatever the priorities."""
_LATELY_S: Final = 10.0
"""Callers count as present for so long after their last request: they need not wait for the long answers of others."""


@dataclass(slots=True, eq=False)
class Place:
    """Places of one request, from `Line.enter` to `leave`.

    Attributes:
        caller: Who has them.
        size: Their number: the request's answers.
    """

    caller: str
    size: int
    _line: Line

    def leave(self) -> None:
        """Frees the places; doing so twice does no harm."""
        self.shrink(0)

    def shrink(self, size: int) -> None:
        """Frees the places beyond so many."""
        if size < self.size:
            self._line._leave(self, self.size - size)  # noqa: SLF001 - one unit
            self.size = size


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A request that waits: its places, its priority, and what is done when it has them."""

    size: int
    priority: int
    granted: asyncio.Future[None]


class Line:
    """Gives places to callers in turn. Belongs to one event loop.

    Args:
        places: Number of places.
        spare: So many of them only callers get that have none, so that the next caller need not wait.
    """

    def __init__(self, places: int, *, spare: int = 0) -> None:
        self.places = places
        self.spare = spare
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Waiting]] = {}  # of each caller, in order of arrival
        self._overtaken: Counter[str] = Counter()  # turns since that of a caller's oldest request
        self._seen: dict[
            str, float
        ] = {}  # when callers were here last, in order of their last turns

    @property
    def held(self) -> int:
        """Places that are held."""
        return self._held.total()

    @property
    def waiting(self) -> int:
        """Requests that wait; may be read in any thread."""
        return sum(map(len, tuple(self._waiting.values())))

    @property
    def waiting_size(self) -> int:
        """Places that they wait for."""
        return sum(entry.size for queue in self._waiting.values() for entry in queue)

    async def enter(self, caller: str, size: int, priority: int = 0) -> Place:
        """Waits for places.

        Args:
            caller: Who asks.
            size: Number of places; a request that is larger than the batch takes all of it.
            priority: Of the requests of one caller, those with the lowest number come first.
        """
        size = min(size, self.places)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = _Waiting(size, priority, granted)
        self._waiting.setdefault(caller, deque()).append(entry)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._remove(caller, entry)
            else:
                self._free(caller, size)
            self._grant()
            raise
        return Place(caller, size, self)

    def _leave(self, place: Place, size: int) -> None:
        self._free(place.caller, size)
        self._grant()

    def _free(self, caller: str, size: int) -> None:
        self._seen[caller] = time.monotonic()
        self._held[caller] -= size
        if not self._held[caller]:
            del self._held[caller]

    def _remove(self, caller: str, entry: _Waiting) -> None:
        queue = self._waiting.get(caller)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(entry)
            if not queue:
                del self._waiting[caller]
                del self._overtaken[caller]

    def _grant(self) -> None:
        """Gives free places to those whose turn it is; a large request is waited for, not overtaken for ever."""
        while (caller := self._next()) is not None:
            entry = self._first(caller)
            kept = self.spare if self._held[caller] else 0
            free = self.places - kept - self._held.total()
            if not entry.granted.cancelled() and entry.size > free:
                return
            is_oldest = entry is self._waiting[caller][0]
            self._overtaken[caller] = 0 if is_oldest else self._overtaken[caller] + 1
            self._remove(caller, entry)
            if not entry.granted.cancelled():
                self._seen.pop(caller, None)
                self._seen[caller] = time.monotonic()
                self._held[caller] += entry.size
                entry.granted.set_result(None)

    def _first(self, caller: str) -> _Waiting:
        """The next request of a caller that waits."""
        queue = self._waiting[caller]
        if self._overtaken[caller] >= _OLDEST_EVERY - 1:
            return queue[0]
        return min(queue, key=lambda entry: entry.priority)  # of equal ones the oldest

    def _next(self) -> str | None:
        """The caller with the fewest places and then the oldest turn, of those that leave the others their shares."""
        if not self._waiting or self._held.total() >= self.places:
            return None
        present = self._present()
        alone = self.places - self.spare
        share = alone if present == 1 else min(alone, self.places // min(present, _MIN_SHARE))
        turns = {caller: index for index, caller in enumerate(self._seen)}
        ranks = {
            caller: (self._held[caller], turns.get(caller, -1))
            for caller in self._waiting
            if not self._held[caller] or self._held[caller] + self._first(caller).size <= share
        }
        return min(ranks, key=lambda caller: ranks[caller], default=None)

    def _present(self) -> int:
        """Number of callers that are or lately were here."""
        oldest = time.monotonic() - _LATELY_S
        self._seen = {w: t for w, t in self._seen.items() if t > oldest or w in self._waiting}
        lately = {who for who, when in self._seen.items() if when > oldest}
        return len({*lately, *self._held, *self._waiting})
