"""The line for something that callers share fairly: places in the engine's batch, its KV cache, memory, workers.

No more requests are given to the engine than it can compute at once and a few more. The next one is of the caller that
has the fewest places, of equal ones the one whose last turn is longest ago; and of its requests it is the one with the
lowest priority number, now and then the oldest. While a large request waits for its places, callers that have none may
overtake it within the spare ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
import contextlib
from dataclasses import dataclass
import math
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
    """Places of one request, from `Line.ask` or `Line.enter` to `leave`.

    Attributes:
        caller: Who has them, or waits for them.
        size: Their number; of a request that is larger than the line, all that there are when it gets them.
        priority: Of the requests of one caller, those with the lowest number come first.
        granted: Done when it has them.
        asked_s: When it asked.
        overtook: It has places although a larger request came before it.
    """

    caller: str
    size: int
    priority: int
    granted: asyncio.Future[None]
    asked_s: float
    _line: Line
    overtook: bool = False

    def leave(self) -> None:
        """Frees the places, or leaves the line; doing so twice does no harm."""
        if self.granted.cancel() or self.granted.cancelled():
            self._line._give_up(self)  # noqa: SLF001 - one unit
        else:
            self.shrink(0)

    def shrink(self, size: int) -> None:
        """Frees the places beyond so many, once it has them."""
        if size < self.size:
            freed, self.size = self.size - size, size
            self._line._free(self, freed)  # noqa: SLF001 - one unit


class Line:
    """Gives places to callers in turn. Belongs to one event loop.

    Args:
        places: Number of places.
        spare: So many of them only callers get that have none, so that the next caller need not wait.
        lately_s: Callers have a share for so long after their last request; 0 where places are held for moments, so
            that none is left empty.
    """

    def __init__(self, places: int, *, spare: int = 0, lately_s: float = _LATELY_S) -> None:
        self.places = places
        self.spare = spare
        self._lately_s = lately_s
        self._held: Counter[str] = Counter()
        self._overtaking = 0  # places of requests that have overtaken a larger one
        self._waiting: dict[str, deque[Place]] = {}  # of each caller, in order of arrival
        self._overtaken: Counter[str] = Counter()  # turns since that of a caller's oldest request
        self._seen: dict[str, float] = {}  # when callers had their last turn, or left
        self._look_again: asyncio.TimerHandle | None = None

    @property
    def held(self) -> int:
        """Places that are held."""
        return self._held.total()

    @property
    def waiting(self) -> int:
        """Requests that wait; may be read in any thread."""
        return sum(map(len, tuple(self._waiting.values())))

    @property
    def waiting_callers(self) -> int:
        """Callers with requests that wait."""
        return len(self._waiting)

    def waiting_size(self, caller: str) -> int:
        """Places that a caller's requests wait for."""
        return sum(min(place.size, self.places) for place in self._waiting.get(caller, ()))

    async def enter(self, caller: str, size: int, priority: int = 0) -> Place:
        """Waits for places; see `ask`."""
        place = self.ask(caller, size, priority)
        try:
            await place.granted
        except asyncio.CancelledError:
            place.leave()
            raise
        return place

    def ask(self, caller: str, size: int, priority: int = 0) -> Place:
        """Asks for places, for which `Place.granted` waits; whoever does not want them any more leaves.

        Args:
            caller: Who asks.
            size: Number of places; 0 are granted at once, and a request larger than the line takes all of it.
            priority: Of the requests of one caller, those with the lowest number come first.
        """
        place = Place(
            caller,
            size,
            priority,
            asyncio.get_running_loop().create_future(),
            time.monotonic(),
            self,
        )
        if size == 0:
            place.granted.set_result(None)
            return place
        self._waiting.setdefault(caller, deque()).append(place)
        self._grant()
        return place

    def _give_up(self, place: Place) -> None:
        self._remove(place)
        self._grant()

    def _free(self, place: Place, size: int) -> None:
        self._seen[place.caller] = time.monotonic()
        self._held[place.caller] -= size
        if not self._held[place.caller]:
            del self._held[place.caller]
        if place.overtook:
            self._overtaking -= size
        self._grant()

    def _remove(self, place: Place) -> None:
        queue = self._waiting.get(place.caller)
        if queue is not None:
            with contextlib.suppress(ValueError):
                queue.remove(place)
            if not queue:
                del self._waiting[place.caller]
                del self._overtaken[place.caller]

    def _grant(self) -> None:
        """Gives free places to those whose turn it is; a large request is waited for, not overtaken for ever."""
        while (caller := self._next()) is not None:
            place = self._first(caller)
            # Not before: an engine that comes back may have fewer pages than when it asked.
            size = min(place.size, self.places)
            kept = self.spare if self._held[caller] else 0
            free = self.places - kept - self._held.total()
            if not place.granted.cancelled() and size > free:
                self._grant_past(caller, size)
                return
            self._give(place, size)

    def _grant_past(self, large: str, large_size: int) -> None:
        """Gives spare places to callers that have none, while a large request waits whose turn it is.

        It does not wait for ever: it has room beside those that overtake it once all others have left, or nobody
        overtakes it from then on.
        """
        without = [who for who in self._waiting if who not in self._held and who != large]
        for caller in sorted(without, key=self._turn):
            place = self._first(caller)
            size = min(place.size, self.places)
            held = self._held.total()
            overtaking = self._overtaking + size
            if held + size > self.places or overtaking > self.spare:
                continue
            waits_anyway = held - self._overtaking + large_size > self.places
            if overtaking + large_size <= self.places or waits_anyway:
                self._give(place, size, overtakes=True)

    def _give(self, place: Place, size: int, *, overtakes: bool = False) -> None:
        """Gives a request its places, unless it has left."""
        caller = place.caller
        is_oldest = place is self._waiting[caller][0]
        self._overtaken[caller] = 0 if is_oldest else self._overtaken[caller] + 1
        self._remove(place)
        if not place.granted.cancelled():
            self._seen.pop(caller, None)
            self._seen[caller] = time.monotonic()
            self._held[caller] += size
            place.size = size
            place.overtook = overtakes
            self._overtaking += size if overtakes else 0
            place.granted.set_result(None)

    def _first(self, caller: str) -> Place:
        """The next request of a caller that waits."""
        queue = self._waiting[caller]
        if self._overtaken[caller] >= _OLDEST_EVERY - 1:
            return queue[0]
        return min(queue, key=lambda place: place.priority)  # of equal ones the oldest

    def _turn(self, caller: str) -> float:
        """When a caller that waits had its last turn.

        Whoever comes has had its turn when those who are here lately had theirs, at the latest: who has waited for so
        long is before all newcomers.
        """
        asked_s = self._waiting[caller][0].asked_s
        return max(self._seen.get(caller, -math.inf), asked_s - _LATELY_S)

    def _next(self) -> str | None:
        """The caller with the fewest places and then the oldest turn, of those that leave the others their shares."""
        if not self._waiting or self._held.total() >= self.places:
            return None
        present = self._present()
        alone = self.places - self.spare
        share = alone if present == 1 else min(alone, self.places // min(present, _MIN_SHARE))
        ranks = {
            caller: (self._held[caller], self._turn(caller))
            for caller in self._waiting
            if not self._held[caller] or self._held[caller] + self._first(caller).size <= share
        }
        if not ranks:
            self._look_again_later()
        return min(ranks, key=lambda caller: ranks[caller], default=None)

    def _look_again_later(self) -> None:
        """The shares grow when a caller is not present any more, though nothing else happens."""
        leaving = [when for who, when in self._seen.items() if who not in self._held]
        if leaving and self._look_again is None:
            wait_s = max(0.0, min(leaving) + _LATELY_S - time.monotonic())
            self._look_again = asyncio.get_running_loop().call_later(wait_s, self._on_time)

    def _on_time(self) -> None:
        self._look_again = None
        self._grant()

    def _present(self) -> int:
        """Number of callers that are or lately were here."""
        now = time.monotonic()
        oldest = now - _LATELY_S
        self._seen = {w: t for w, t in self._seen.items() if t > oldest or w in self._waiting}
        lately = {w for w, t in self._seen.items() if t > now - self._lately_s}
        return len({*lately, *self._held, *self._waiting})
