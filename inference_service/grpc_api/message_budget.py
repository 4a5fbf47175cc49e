"""Bounds the memory of request messages: those that are being received, and those that wait.

gRPC tells neither the size of a message before it is complete nor how much of it has arrived. So a message counts as
large as possible until it is complete, then with its size, until the request needs it no longer. When there is no room,
unfinished messages that have taken long are cut, those of the caller with the most first, and one that is its caller's
only one later; small messages arrive in milliseconds and are not affected.

gRPC copies a message on the event loop when it is complete. So that this never takes long at a time, a caller has no
more than a part of the room for messages that are not complete.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
import contextlib
from dataclasses import dataclass, field
import time
from typing import Any, Final

from inference_service.errors import QueueFullError


_LINE_IS_FULL: Final = "too many messages wait for room"
_POLL_S: Final = 0.05
_RETRY_AFTER_S: Final = 2.0
_PART: Final = 2
_MIN_RECEIVING: Final = 4
"""A caller receives so many messages at once, or the `_PART`th part of those that there is room for."""
_MAX_PART: Final = 0.75
"""A caller's messages have this part of the room together, or that of `_MIN_RECEIVING` messages."""


@dataclass(slots=True, eq=False)
class Claim:
    """A place for one message.

    Attributes:
        caller: The caller that sends it.
        num_bytes: The bytes that it counts.
        since: `time.monotonic()` when it began to be received.
        receiving: It is not complete.
        cut: Done when it has to make room for others.
    """

    caller: str
    num_bytes: int
    since: float = 0.0
    receiving: bool = True
    cut: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class MessageBudget:
    """The bytes of request messages in memory. Belongs to one event loop.

    Args:
        limit_bytes: Maximum of all messages together.
        max_message_bytes: Maximum of one message.
        max_waiting: Maximum messages that wait for room.
        wait_s: Maximum time that a message waits for room. For its caller's other messages it may wait longer.
        patience_s: Time that a message may take to arrive while others wait.
        patience_alone_s: The same for the only unfinished message of its caller.
        setting: The flag that sets the limit, for errors; empty = none.
    """

    def __init__(
        self,
        limit_bytes: int,
        *,
        max_message_bytes: int,
        max_waiting: int,
        wait_s: float,
        patience_s: float = 1.0,
        patience_alone_s: float = 1.0,
        setting: str = "",
    ) -> None:
        self.limit_bytes = max(limit_bytes, max_message_bytes)
        self._max_message_bytes = max_message_bytes
        self._max_waiting = max_waiting
        self._wait_s = wait_s
        self._patience_s = patience_s
        self._patience_alone_s = patience_alone_s
        self._setting = setting
        self._max_receiving = max(_MIN_RECEIVING, self.limit_bytes // max_message_bytes // _PART)
        self._max_held = max(_MIN_RECEIVING * max_message_bytes, int(self.limit_bytes * _MAX_PART))
        self._claims: set[Claim] = set()
        self._waiting: list[tuple[Claim, asyncio.Future[bool]]] = []  # in order of arrival

    @property
    def used_bytes(self) -> int:
        """Bytes that are claimed."""
        return sum(claim.num_bytes for claim in self._claims)

    async def receive(
        self, claim: Claim, read: Callable[[], Awaitable[bytes | None]], timeout_s: float
    ) -> bytes | None:
        """Receives a message for a claim that `reserve` granted.

        Args:
            claim: The claim; from now on it counts the size of the message.
            read: Reads the message; None = there is none. It is never cancelled, since gRPC writes to its memory; it
                ends when the call does.
            timeout_s: Maximum time.

        Raises:
            TimeoutError: The message is not complete.
            QueueFullError: It was cut to make room for others.
        """
        claim.since = time.monotonic()
        reading = asyncio.ensure_future(read())
        events: list[asyncio.Future[Any]] = [reading, claim.cut]
        await asyncio.wait(events, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            reading.add_done_callback(_retrieve)
            if claim.cut.done():
                raise self._full("the message took too long to arrive while others waited")
            raise TimeoutError
        message = reading.result()
        claim.receiving = False
        claim.num_bytes = len(message or b"")
        self._grant()
        return message

    async def reserve(self, caller: str) -> Claim:
        """Claims room for one message of a caller; `release` ends the claim.

        Raises:
            QueueFullError: There is no room, and none became free in time.
        """
        claim = Claim(caller, self._max_message_bytes)
        if self._fits(claim) and not any(self._fits(waiting) for waiting, _ in self._waiting):
            self._claims.add(claim)
            return claim
        if len(self._waiting) >= self._max_waiting and not self._shorten_line(caller):
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
        return claim

    def release(self, claim: Claim) -> None:
        """Ends a claim; ending it twice does no harm."""
        self._claims.discard(claim)
        self._grant()

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
                until = None  # for messages of its own caller it waits as long as the call may
            else:
                self._cut_one()
                until = until or time.monotonic() + self._wait_s
            await asyncio.wait({granted}, timeout=_POLL_S)
            if not granted.done() and until is not None and time.monotonic() >= until:
                raise self._full(f"no room became free within {self._wait_s:g} s")
        if not granted.result():
            raise self._full(_LINE_IS_FULL)

    def _fits(self, claim: Claim) -> bool:
        if not self._has_room(claim):
            return False
        mine = [one for one in self._claims if one.caller == claim.caller]
        if sum(one.num_bytes for one in mine) + claim.num_bytes > self._max_held:
            return False
        return sum(one.receiving for one in mine) < self._max_receiving

    def _has_room(self, claim: Claim) -> bool:
        return self.used_bytes + claim.num_bytes <= self.limit_bytes

    def _grant(self) -> None:
        """Grants room to the caller that has least, in order of arrival."""
        self._waiting = [entry for entry in self._waiting if not entry[1].cancelled()]
        while fitting := [entry for entry in self._waiting if self._fits(entry[0])]:
            held = self._held()
            entry = min(fitting, key=lambda entry: held[entry[0].caller])
            claim, granted = entry
            self._waiting.remove(entry)
            self._claims.add(claim)
            granted.set_result(True)

    def _held(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for claim in self._claims:
            held[claim.caller] += claim.num_bytes
        return held

    def _cut_one(self) -> None:
        """Cuts the oldest unfinished message of the caller with the most, unless all are recent."""
        receiving = [claim for claim in self._claims if claim.receiving]
        if any(claim.cut.done() for claim in receiving):
            return  # its room is about to become free
        counts = Counter(claim.caller for claim in receiving)
        now = time.monotonic()
        slow = [
            claim
            for claim in receiving
            if claim.since
            and now - claim.since
            > (self._patience_s if counts[claim.caller] > 1 else self._patience_alone_s)
        ]
        if slow:
            victim = max(slow, key=lambda claim: (counts[claim.caller], -claim.since))
            victim.cut.set_result(None)

    def _full(self, why: str) -> QueueFullError:
        return QueueFullError(
            f"The service has no room for this message: {why}; at most {self.limit_bytes} bytes of request messages"
            f" are held in memory{self._setting and f' ({self._setting})'}; try again later.",
            retry_after_s=_RETRY_AFTER_S,
        )


def _retrieve(reading: asyncio.Future[bytes | None]) -> None:
    """Marks the result of an abandoned read as seen."""
    if not reading.cancelled():
        reading.exception()
