"""A room that callers share: claims for bytes, a line for those that find none, and who makes room.

A claim is granted to the caller that holds least. No caller keeps the others out: a part of the room is left to them,
and when the line is full, the newest wait of the caller with the most in it gives way to a caller with fewer. While a
claim waits for room, unfinished ones that have taken long are cut, those of the caller with the most first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
import contextlib
from dataclasses import dataclass
import time
from typing import Final

from inference_service.errors import QueueFullError


_LINE_IS_FULL: Final = "too many wait for room"
_POLL_S: Final = 0.05
_RETRY_AFTER_S: Final = 2.0


@dataclass(slots=True, eq=False)
class Claim:
    """A place in the room.

    Attributes:
        caller: Whose it is.
        num_bytes: The bytes that it counts.
        is_made: What it counts is in memory while it waits.
        since: `time.monotonic()` when it began to be received or sent; 0 = it has not.
        unfinished: It is not received or sent yet.
        cut: Done when it has to make room for others; None = it has not begun to be received or sent.
    """

    caller: str
    num_bytes: int
    is_made: bool = False
    since: float = 0.0
    unfinished: bool = True
    cut: asyncio.Future[None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """How long claims wait, and who makes room for them meanwhile.

    Attributes:
        max_waiting: Maximum claims that wait for room.
        wait_s: Maximum time that a claim waits for room. For its caller's other claims it may wait longer.
        patience_s: Time that a claim may be unfinished while others wait.
        patience_alone_s: The same for the only unfinished claim of its caller.
    """

    max_waiting: int
    wait_s: float
    patience_s: float = 1.0
    patience_alone_s: float = 1.0


class FairRoom:
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
        self._claims: set[Claim] = set()
        self._held: Counter[str] = Counter()  # bytes of each caller
        self._unfinished: Counter[str] = Counter()  # claims of each caller
        self._waiting: list[tuple[Claim, asyncio.Future[bool]]] = []  # in order of arrival
        self._next_cut_s = 0.0

    def release(self, claim: Claim) -> None:
        """Ends a claim; ending it twice does no harm."""
        if claim in self._claims:
            self._finish(claim)
            self._claims.discard(claim)
            self._hold(claim, -claim.num_bytes)
        self._grant()

    def resize(self, claim: Claim, num_bytes: int) -> None:
        """Changes what a claim counts, also to more than there is room for: it is in memory."""
        if claim in self._claims:
            self._hold(claim, num_bytes - claim.num_bytes)
        claim.num_bytes = num_bytes
        self._grant()

    async def _reserve(self, claim: Claim) -> None:
        """Waits until a claim is granted; `release` ends it.

        Raises:
            QueueFullError: There is no room, and none became free in time.
        """
        if self._try(claim):
            return
        if self._line_is_full(claim) and not self._shorten_line(claim.caller):
            raise self._full(_LINE_IS_FULL)
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((claim, granted))
        try:
            await self._wait(claim, granted)
        except BaseException:
            if granted.done() and not granted.cancelled():
                self.release(claim)
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove((claim, granted))

    def _try(self, claim: Claim) -> bool:
        """Grants a claim if it need not wait."""
        if not self._fits(claim) or any(self._fits(waiting) for waiting, _ in self._waiting):
            return False
        self._take(claim)
        return True

    def _may_have(self, claim: Claim) -> bool:
        """Whether its caller's share allows a claim."""
        raise NotImplementedError

    def _has_room(self, claim: Claim) -> bool:
        return self.used_bytes + claim.num_bytes <= self.limit_bytes

    def _fits(self, claim: Claim) -> bool:
        return self._has_room(claim) and self._may_have(claim)

    def _take(self, claim: Claim) -> None:
        self._claims.add(claim)
        self._hold(claim, claim.num_bytes)
        self._unfinished[claim.caller] += claim.unfinished

    def _finish(self, claim: Claim) -> None:
        """Notes that a claim is received or sent, or never will be."""
        if claim.unfinished and claim in self._claims:
            self._unfinished[claim.caller] -= 1
            if not self._unfinished[claim.caller]:
                del self._unfinished[claim.caller]
        claim.unfinished = False

    def _hold(self, claim: Claim, more_bytes: int) -> None:
        self.used_bytes += more_bytes
        self._held[claim.caller] += more_bytes
        if not self._held[claim.caller]:
            del self._held[claim.caller]

    def _line_is_full(self, claim: Claim) -> bool:
        made = [waiting.num_bytes for waiting, _ in self._waiting if waiting.is_made]
        return len(self._waiting) >= self._line.max_waiting or (
            claim.is_made and sum(made) + claim.num_bytes > self.limit_bytes
        )

    def _shorten_line(self, caller: str) -> bool:
        """Ends the newest wait of the caller with the most, if the line is then no more unequal than before."""
        counts = Counter(claim.caller for claim, _ in self._waiting)
        most, number = max(counts.items(), key=lambda item: item[1])
        if number <= counts[caller] + 1:
            return False
        entry = next(entry for entry in reversed(self._waiting) if entry[0].caller == most)
        self._waiting.remove(entry)
        entry[1].set_result(False)
        return True

    async def _wait(self, claim: Claim, granted: asyncio.Future[bool]) -> None:
        """Waits until a claim is granted or has to give way, and makes room where room is what is missing."""
        until: float | None = None
        while not granted.done():
            if self._has_room(claim):
                until = None  # for claims of its own caller it waits as long as the call may
            else:
                self._cut_one()
                until = until or time.monotonic() + self._line.wait_s
            await asyncio.wait({granted}, timeout=_POLL_S)
            if not granted.done() and until is not None and time.monotonic() >= until:
                raise self._full(f"no room became free within {self._line.wait_s:g} s")
        if not granted.result():
            raise self._full(_LINE_IS_FULL)

    def _grant(self) -> None:
        """Grants room to the caller that has least, in order of arrival."""
        if not self._waiting:
            return
        self._waiting = [entry for entry in self._waiting if not entry[1].cancelled()]
        while fitting := [entry for entry in self._waiting if self._fits(entry[0])]:
            entry = min(fitting, key=lambda entry: self._held[entry[0].caller])
            claim, granted = entry
            self._waiting.remove(entry)
            self._take(claim)
            granted.set_result(True)

    def _cut_one(self) -> None:
        """Cuts one unfinished claim, unless all are recent."""
        now = time.monotonic()
        if now < self._next_cut_s:  # another one that waits has looked
            return
        self._next_cut_s = now + _POLL_S / 2
        unfinished = [claim for claim in self._claims if claim.unfinished]
        if any(claim.cut is not None and claim.cut.done() for claim in unfinished):
            return  # its room is about to become free
        counts, line = self._unfinished, self._line
        slow = [
            claim
            for claim in unfinished
            if claim.since
            and now - claim.since
            > (line.patience_s if counts[claim.caller] > 1 else line.patience_alone_s)
        ]
        if slow:
            wake(max(slow, key=self._rank).cut)

    def _rank(self, claim: Claim) -> tuple[float, float]:
        """Of slow claims, which is cut first."""
        return self._unfinished[claim.caller], -claim.since

    def _full(self, why: str) -> QueueFullError:
        one, many = self._name
        return QueueFullError(
            f"The service has no room for this {one}: {why}; at most {self.limit_bytes} bytes of {many} are held in"
            f" memory{self._setting and f' ({self._setting})'}; try again later.",
            retry_after_s=_RETRY_AFTER_S,
        )


def wake(event: asyncio.Future[None] | None) -> None:
    """Sets the result of a future that may be done."""
    if event is not None and not event.done():
        event.set_result(None)
