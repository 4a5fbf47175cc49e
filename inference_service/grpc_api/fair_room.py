"""A room that callers share: claims for bytes, and a line for those that find none.

A claim is granted to the caller that holds least. No caller keeps the others out: a part of the room is left to them,
and when the line is full, the newest waits of the caller with the most in it give way to a caller with less.

Of each caller only the first wait is looked at when room becomes free, and one timer looks after all that wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
import asyncio
from collections import Counter, deque
import contextlib
from dataclasses import dataclass
import time
from typing import Final, Generic, TypeVar

from inference_service.errors import QueueFullError


_LINE_IS_FULL: Final = "too many wait for room"
_LOOK_EVERY_S: Final = 0.025
_RETRY_AFTER_S: Final = 2.0


@dataclass(slots=True, eq=False)
class Claim:
    """A place in the room.

    Attributes:
        caller: Whose it is.
        num_bytes: The bytes that it counts.
        is_made: What it counts is in memory while it waits.
    """

    caller: str
    num_bytes: int
    is_made: bool = False


AnyClaim = TypeVar("AnyClaim", bound=Claim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How many claims wait for room, and how long.

    Attributes:
        max_waiting: Maximum claims that wait; the bytes of those that are made are at most as many as the room's.
        wait_s: Maximum time that a claim waits for room. For its caller's other claims it may wait longer.
    """

    max_waiting: int
    wait_s: float


@dataclass(slots=True, eq=False)
class _Wait(Generic[AnyClaim]):
    """A claim that waits.

    Attributes:
        claim: The claim.
        end: Its result is why the claim is refused; empty = it is granted.
        since: `time.monotonic()` when it began to wait.
        until: The same when it is refused; None = there is room, and it waits for its caller's other claims.
    """

    claim: AnyClaim
    end: asyncio.Future[str]
    since: float
    until: float | None = None


class FairRoom(ABC, Generic[AnyClaim]):
    """The room. Belongs to one event loop.

    Args:
        limit_bytes: Maximum of all claims together.
        line: The line for it.
        name: What is claimed, for errors: "a message"; and "request messages".
        setting: The flag that sets the limit, for errors; empty = none.
    """

    def __init__(
        self, limit_bytes: int, line: Line, *, name: tuple[str, str], setting: str = ""
    ) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._line = line
        self._name = name
        self._setting = setting
        self._claims: set[AnyClaim] = set()
        self._held: Counter[str] = Counter()  # bytes of each caller
        self._waits: dict[str, deque[_Wait[AnyClaim]]] = {}  # of each caller, in order of arrival
        self._timer: asyncio.TimerHandle | None = None

    def release(self, claim: AnyClaim) -> None:
        """Ends a claim; ending it twice does no harm."""
        if claim in self._claims:
            self._claims.discard(claim)
            self._hold(claim, -claim.num_bytes)

    def resize(self, claim: AnyClaim, num_bytes: int) -> None:
        """Changes what a claim counts, also to more than there is room for: it is in memory."""
        more_bytes, claim.num_bytes = num_bytes - claim.num_bytes, num_bytes
        if claim in self._claims:
            self._hold(claim, more_bytes)

    async def _reserve(self, claim: AnyClaim) -> None:
        """Waits until a claim is granted; `release` ends it.

        Raises:
            QueueFullError: There is no room, and none became free in time.
        """
        if self._try(claim):
            return
        self._make_place(claim)
        wait = _Wait(claim, asyncio.get_running_loop().create_future(), time.monotonic())
        self._waits.setdefault(claim.caller, deque()).append(wait)
        if self._timer is None:
            self._look_after()
        try:
            why_not = await wait.end
        except asyncio.CancelledError:
            self.release(claim)  # if it was granted
            raise
        finally:
            self._leave(wait)
        if why_not:
            raise self._full(why_not)

    def _try(self, claim: AnyClaim) -> bool:
        """Grants a claim if it fits; no caller's first one in the line does, or it would not wait."""
        if not self._fits(claim):
            return False
        self._take(claim)
        return True

    @abstractmethod
    def _may_have(self, claim: AnyClaim) -> bool:
        """Whether its caller's share allows a claim."""

    def _has_room(self, claim: AnyClaim) -> bool:
        return self.used_bytes + claim.num_bytes <= self.limit_bytes

    def _fits(self, claim: AnyClaim) -> bool:
        return self._has_room(claim) and self._may_have(claim)

    def _make_room(self) -> None:
        """Does what it can to make room; is called again and again while a claim waits for it."""

    def _take(self, claim: AnyClaim) -> None:
        self._claims.add(claim)
        self._hold(claim, claim.num_bytes)

    def _hold(self, claim: AnyClaim, more_bytes: int) -> None:
        self.used_bytes += more_bytes
        self._held[claim.caller] += more_bytes
        if not self._held[claim.caller]:
            del self._held[claim.caller]
        if more_bytes < 0:
            self._grant()

    def _grant(self) -> None:
        """Grants room to the caller that has least, in order of arrival."""
        while self._waits:
            fitting = [line[0] for line in self._waits.values() if self._fits(line[0].claim)]
            if not fitting:
                return
            wait = min(fitting, key=lambda one: (self._held[one.claim.caller], one.since))
            self._leave(wait)
            if not wait.end.done():  # its call has ended
                self._take(wait.claim)
                wait.end.set_result("")

    def _leave(self, wait: _Wait[AnyClaim]) -> None:
        """Takes a wait out of the line; twice does no harm."""
        line = self._waits.get(wait.claim.caller, deque())
        with contextlib.suppress(ValueError):
            line.remove(wait)
        if not line:
            self._waits.pop(wait.claim.caller, None)

    def _refuse(self, wait: _Wait[AnyClaim], why_not: str) -> None:
        self._leave(wait)
        if not wait.end.done():
            wait.end.set_result(why_not)

    def _make_place(self, claim: AnyClaim) -> None:
        """Ends the newest waits of the callers with the most until the line holds another one.

        Raises:
            QueueFullError: Its caller would then have the most.
        """
        gone: set[_Wait[AnyClaim]] = set()
        for weigh, maximum in ((_one, self._line.max_waiting), (_made, self.limit_bytes)):
            waits = [one for line in self._waits.values() for one in line if one not in gone]
            weights = Counter({claim.caller: weigh(claim)})
            for one in waits:
                weights[one.claim.caller] += weigh(one.claim)
            while weights.total() > maximum:
                most = max(weights, key=weights.__getitem__)
                if weights[most] <= weights[claim.caller]:
                    raise self._full(_LINE_IS_FULL)
                newest = next(
                    one
                    for one in reversed(waits)
                    if one.claim.caller == most and weigh(one.claim) and one not in gone
                )
                gone.add(newest)
                weights[most] -= weigh(newest.claim)
        for one in gone:
            self._refuse(one, _LINE_IS_FULL)

    def _look_after(self) -> None:
        """Makes room where room is what is missing, and refuses what has waited too long for it."""
        self._timer = None
        now, is_short = time.monotonic(), False
        for wait in [one for line in self._waits.values() for one in line]:
            if self._has_room(wait.claim):
                wait.until = None
                continue
            is_short = True
            if wait.until is None:
                wait.until = now + self._line.wait_s
            elif now >= wait.until:
                self._refuse(wait, f"no room became free within {self._line.wait_s:g} s")
        if is_short:
            self._make_room()
        if self._waits:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_LOOK_EVERY_S, self._look_after)

    def _full(self, why: str) -> QueueFullError:
        one, many = self._name
        return QueueFullError(
            f"The service has no room for this {one}: {why}; at most {self.limit_bytes} bytes of {many} are held in"
            f" memory{self._setting and f' ({self._setting})'}; try again later.",
            retry_after_s=_RETRY_AFTER_S,
        )


def _one(claim: Claim) -> int:
    del claim
    return 1


def _made(claim: Claim) -> int:
    return claim.num_bytes if claim.is_made else 0


def wake(event: asyncio.Future[None]) -> None:
    """Sets the result of a future that may be done."""
    if not event.done():
        event.set_result(None)
