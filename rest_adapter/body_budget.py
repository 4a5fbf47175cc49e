"""The memory of all request bodies together, of which no caller has all.

A body can be small on the wire and large when it is decoded, and its client can stop before its end: whatever one
caller holds, the others have room for the largest body. When there is no room, bodies that are not complete give way:
those of the caller itself that have stopped, and those of callers that hold more.

Answers count in the same way, but what has been computed is not refused for want of room that bodies took: where there
is none, answers have a reserve that bodies cannot take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
import contextlib
from dataclasses import dataclass
import time
from typing import Final

from rest_adapter.errors import ApiError, of_reason


STALLED_S: Final = 2.0
"""A body without a byte for so long gives way first."""

_SMALL_BODY_BYTES: Final = 2**20
_SHARE_OF_LARGE_BODIES: Final = 0.75
_RESERVE: Final = 0.25
"""What answers may have beyond the budget, as a part of it; at least the largest body."""

_MAX_VICTIMS: Final = 16
"""Smaller bodies than this part of what is missing do not give way: very many would have to."""

_RETRY_AFTER_S: Final = 2.0
_DISCARDED_BYTES_PER_S: Final = 64 * 2**20
_MIB: Final = 2**20


@dataclass(slots=True, eq=False)
class Holding:
    """What one request holds.

    Attributes:
        caller: Whose request it is.
        num_bytes: How many bytes it holds, without the reserve.
        reserve_bytes: How many bytes of the reserve it holds.
        heard_s: When it last grew, on the clock of the budget.
        give_way: Ends a body that is not complete, and gives its bytes back at once; None = it is complete.
    """

    caller: str
    num_bytes: int = 0
    reserve_bytes: int = 0
    heard_s: float = 0.0
    give_way: Callable[[], None] | None = None


class _Held:
    """Bytes of all requests or of one caller, those of large bodies apart."""

    def __init__(self) -> None:
        self.num_bytes = self.large_bytes = 0

    def add(self, before: int, after: int) -> None:
        """Counts a request that now holds `after` instead of `before` bytes."""
        self.num_bytes += after - before
        self.large_bytes += _if_large(after) - _if_large(before)


def _if_large(num_bytes: int) -> int:
    return num_bytes if num_bytes > _SMALL_BODY_BYTES else 0


class BodyBudget:
    """The bytes of request bodies that the adapter holds. Belongs to one event loop.

    Large bodies have three quarters, so that they cannot exclude small ones.

    Args:
        max_bytes: Maximum of all.
        largest_bytes: Maximum size of one body, for which each caller leaves room.
        clock: Seconds from any beginning.

    Attributes:
        largest_answer_bytes: What a caller can take for one answer at most, alone.
    """

    def __init__(
        self, max_bytes: int, largest_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes = max_bytes
        self._max_large_bytes = int(max_bytes * _SHARE_OF_LARGE_BODIES)
        self._largest_bytes = largest_bytes
        self._free_reserve_bytes = max(int(max_bytes * _RESERVE), largest_bytes)
        self.largest_answer_bytes = (
            max(self._max_large_bytes - largest_bytes, largest_bytes) + self._free_reserve_bytes
        )
        self._clock = clock
        self._holdings: dict[Holding, None] = {}  # the newest is the last
        self._all = _Held()
        self._callers: defaultdict[str, _Held] = defaultdict(_Held)
        self._discarding = 0

    @property
    def used_bytes(self) -> int:
        """Bytes that are held, without the reserve."""
        return self._all.num_bytes

    def take(self, holding: Holding, count: int) -> None:
        """Takes bytes for a request; others may have to give way.

        Raises:
            ApiError: There is no room.
        """
        while (refusal := self._refusal(holding, count)) is not None:
            victim = self._victim(holding, count)
            if victim is None or victim.give_way is None:
                raise refusal
            victim.give_way()
        if count:
            holding.heard_s = self._clock()
        self._holdings[holding] = None
        self._set(holding, holding.num_bytes + count)

    def take_for_answer(self, holding: Holding, count: int) -> None:
        """Takes bytes for the answer to a request, of the reserve if there is no other room.

        Raises:
            ApiError: There is no room there either.
        """
        try:
            self.take(holding, count)
        except ApiError:
            if count > self._free_reserve_bytes:
                raise self.full("There is no room for the answer in memory") from None
            self._free_reserve_bytes -= count
            holding.reserve_bytes += count
            self._holdings[holding] = None

    def give_back(self, holding: Holding) -> None:
        """Gives all bytes of a request back; doing so twice does no harm."""
        self._set(holding, 0)
        self._free_reserve_bytes += holding.reserve_bytes
        holding.reserve_bytes = 0
        if not self._callers[holding.caller].num_bytes:
            del self._callers[holding.caller]
        self._holdings.pop(holding, None)

    def _set(self, holding: Holding, after: int) -> None:
        for held in (self._all, self._callers[holding.caller]):
            held.add(holding.num_bytes, after)
        holding.num_bytes = after

    def full(self, what: str) -> ApiError:
        """The error where there is no room.

        Args:
            what: Why, as a sentence without its end.
        """
        maximum = self._max_bytes // _MIB
        text = (
            f"{what}; all together have at most {maximum} MiB (--body-budget-mib). Try again later."
        )
        return of_reason("QUEUE_FULL", text, retry_after_s=_RETRY_AFTER_S)

    def _excess(self, holding: Holding, count: int) -> tuple[int, int]:
        """How many bytes are too many, of all callers and of the one that takes them; 0 or less = there is room."""
        after = holding.num_bytes + count
        large = _if_large(after) - _if_large(holding.num_bytes)

        def excess(held: _Held, room_for_others: int) -> int:
            limits = (self._max_bytes - room_for_others, self._max_large_bytes - room_for_others)
            most, most_large = (max(self._largest_bytes, limit) for limit in limits)
            of_large = held.large_bytes + large - most_large if large else 0
            return max(held.num_bytes + count - most, of_large)

        own = self._of(holding.caller)
        return excess(self._all, 0), excess(own, self._largest_bytes)

    def _of(self, caller: str) -> _Held:
        return self._callers.get(caller) or _Held()

    def _refusal(self, holding: Holding, count: int) -> ApiError | None:
        of_all, of_caller = self._excess(holding, count)
        if of_caller > 0:
            return self.full(
                f"Your request bodies would have {of_caller} bytes more in memory than one caller may hold, so that"
                f" others have room for {self._largest_bytes // _MIB} MiB"
            )
        if of_all > 0:
            return self.full("There is no room for the request body in memory")
        return None

    def _victim(self, holding: Holding, count: int) -> Holding | None:
        """The body that gives way to another; None = none does."""
        of_all, of_caller = self._excess(holding, count)
        least = max(of_all, of_caller) // _MAX_VICTIMS
        unfinished = [
            each
            for each in self._holdings
            if each.give_way is not None and each is not holding and each.num_bytes > least
        ]
        mine = [each for each in unfinished if each.caller == holding.caller]
        if (stalled := self._longest_stalled(mine)) is not None or of_caller > 0:
            return stalled
        own = self._of(holding.caller).num_bytes + count
        greedy = max(
            (each.caller for each in unfinished if self._of(each.caller).num_bytes > own),
            key=lambda caller: self._of(caller).num_bytes,
            default=None,
        )
        theirs = [each for each in unfinished if each.caller == greedy]
        return self._longest_stalled(theirs) or (theirs[-1] if theirs else None)

    def _longest_stalled(self, holdings: Iterable[Holding]) -> Holding | None:
        last_s = self._clock() - STALLED_S
        stalled = (each for each in holdings if each.heard_s <= last_s)
        return min(stalled, key=lambda each: each.heard_s, default=None)

    @contextlib.contextmanager
    def discarding(self) -> Iterator[Callable[[int], float]]:
        """While a body is being discarded; all of them share one rate, so that a flood does not take all the time.

        Yields:
            A function that returns how many seconds to wait after so many bytes.
        """
        self._discarding += 1
        try:
            yield lambda count: count * self._discarding / _DISCARDED_BYTES_PER_S
        finally:
            self._discarding -= 1
