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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
import time
from typing import Any, Final

from inference_service.grpc_api.fair_room import Claim, FairRoom, Line, wake


_PART: Final = 2
_MIN_RECEIVING: Final = 4
"""A caller receives so many messages at once, or the `_PART`th part of those that there is room for."""
_MAX_PART: Final = 0.75
"""A caller's messages have this part of the room together, or that of `_MIN_RECEIVING` messages."""


@dataclass(slots=True, eq=False)
class MessageClaim(Claim):
    """A place for a message.

    Attributes:
        since: `time.monotonic()` when it began to be received; 0 = it has not.
        cut: Done when it has to make room for others; None = it has not begun to be received.
    """

    since: float = 0.0
    cut: asyncio.Future[None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a message may be incomplete while others wait for room.

    Attributes:
        one_s: Maximum time of one.
        alone_s: The same for the only incomplete message of its caller.
    """

    one_s: float
    alone_s: float


class MessageBudget(FairRoom[MessageClaim]):
    """The bytes of request messages in memory.

    Args:
        limit_bytes: Maximum of all messages together.
        line: The line for it.
        patience: When those that are incomplete make room.
        max_message_bytes: Maximum of one message.
        setting: The flag that sets the limit, for errors; empty = none.
    """

    def __init__(
        self,
        limit_bytes: int,
        line: Line,
        patience: Patience,
        *,
        max_message_bytes: int,
        setting: str = "",
    ) -> None:
        limit_bytes = max(limit_bytes, max_message_bytes)
        super().__init__(limit_bytes, line, name=("message", "request messages"), setting=setting)
        self._patience = patience
        self._max_message_bytes = max_message_bytes
        self._max_receiving = max(_MIN_RECEIVING, limit_bytes // max_message_bytes // _PART)
        self._max_held = max(_MIN_RECEIVING * max_message_bytes, int(limit_bytes * _MAX_PART))
        self._unfinished: dict[str, set[MessageClaim]] = {}  # of each caller

    async def reserve(self, caller: str) -> MessageClaim:
        """Claims room for one message of a caller; `release` ends the claim.

        Raises:
            QueueFullError: There is no room, and none became free in time.
        """
        claim = MessageClaim(caller, self._max_message_bytes)
        await self._reserve(claim)
        return claim

    async def receive(
        self, claim: MessageClaim, read: Callable[[], Awaitable[bytes | None]], timeout_s: float
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
        claim.cut = cut = asyncio.get_running_loop().create_future()
        events: list[asyncio.Future[Any]] = [reading, cut]
        await asyncio.wait(events, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            reading.add_done_callback(_retrieve)
            if cut.done():
                raise self._full("the message took too long to arrive while others waited")
            raise TimeoutError
        message = reading.result()
        self._finish(claim)
        self.resize(claim, len(message or b""))
        return message

    def release(self, claim: MessageClaim) -> None:
        """Ends a claim; ending it twice does no harm."""
        self._finish(claim)
        super().release(claim)

    def _may_have(self, claim: MessageClaim) -> bool:
        if self._held[claim.caller] + claim.num_bytes > self._max_held:
            return False
        return len(self._unfinished.get(claim.caller, ())) < self._max_receiving

    def _take(self, claim: MessageClaim) -> None:
        super()._take(claim)
        self._unfinished.setdefault(claim.caller, set()).add(claim)

    def _finish(self, claim: MessageClaim) -> None:
        """Notes that a message is received, or never will be."""
        mine = self._unfinished.get(claim.caller, set())
        if claim in mine:
            mine.discard(claim)
            if not mine:
                del self._unfinished[claim.caller]
            self._grant()

    def _make_room(self) -> None:
        """Cuts one unfinished message, unless all are recent, or the room of another is about to become free."""
        now, slow = time.monotonic(), []
        for mine in self._unfinished.values():
            patience_s = self._patience.one_s if len(mine) > 1 else self._patience.alone_s
            for claim in mine:
                if claim.cut is not None and claim.cut.done():
                    return
                if claim.cut is not None and now - claim.since > patience_s:
                    slow.append((len(mine), -claim.since, claim.cut))
        if slow:
            wake(max(slow, key=lambda one: one[:2])[2])


def _retrieve(reading: asyncio.Future[bytes | None]) -> None:
    """Marks the result of an abandoned read as seen."""
    if not reading.cancelled():
        reading.exception()
