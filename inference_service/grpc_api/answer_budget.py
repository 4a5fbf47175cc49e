"""Bounds the memory of answers that are not sent yet: those that are being made, and those that nobody reads.

A client that does not read leaves its answer in memory twice: the bytes that were to be sent, and gRPC's own copy of
them. After the time for sending they stay there until the call is gone, which may be when its connection ends. So an
answer counts twice its size, from before it is made where it may be large, until gRPC lets go of it.

A caller has no more than a part of the room. Most messages of streams are tiny: these always pass, and count nothing.
So does what is small of a caller that holds next to nothing: nobody can stop it. Others wait for room; until they must
give up, whatever fills it is either sent, or has taken its time for that, and its connection can be closed
(`Connections.unread`). So nothing that is being sent has to be cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from inference_service.grpc_api.fair_room import Claim, FairRoom, Line, wake


COPIES: Final = 2
"""An unsent answer is in memory so many times."""
_TINY_BYTES: Final = 2**13
"""A message of this size takes less than what its open call takes besides, some 28 KiB."""
_ALWAYS_BYTES: Final = 2**17
"""So much of each caller always passes."""
_LARGEST: Final = 2
"""A caller's answers have half of the room, or that of so many of the largest."""


class AnswerBudget(FairRoom[Claim]):
    """The bytes of unsent answers in memory.

    Args:
        limit_bytes: Maximum of all answers together, but for what always passes; at least what three of the largest
            count: two of one caller, and one of another.
        line: The line for the room.
        max_message_bytes: Maximum of one answer.
        setting: The flag that sets the limit, for errors; empty = none.
    """

    def __init__(
        self, limit_bytes: int, line: Line, *, max_message_bytes: int, setting: str = ""
    ) -> None:
        self._max_claim = COPIES * max_message_bytes
        limit_bytes = max(limit_bytes, (_LARGEST + 1) * self._max_claim)
        super().__init__(limit_bytes, line, name=("answer", "unsent answers"), setting=setting)
        self._max_held = max(limit_bytes // 2, _LARGEST * self._max_claim)

    async def reserve(self, caller: str, num_bytes: int, *, is_made: bool = False) -> Claim:
        """Claims room for an answer of a caller; `release` ends the claim.

        Args:
            caller: The caller.
            num_bytes: The size of its message, or about the most that it may have.
            is_made: The answer is in memory while it waits.

        Raises:
            QueueFullError: There is no room, and none became free in time.
        """
        claim = Claim(caller, min(_counted(num_bytes), self._max_claim), is_made)
        await self._reserve(claim)
        return claim

    def try_reserve(self, caller: str, num_bytes: int) -> Claim | None:
        """Claims room as `reserve` does; None = the claim would have to wait."""
        claim = Claim(caller, _counted(num_bytes))
        return claim if self._try(claim) else None

    async def send(
        self,
        claim: Claim,
        message: bytes,
        write: Callable[[bytes], Awaitable[None]],
        timeout_s: float,
    ) -> asyncio.Future[None] | None:
        """Sends an answer for a claim that `reserve` granted, and ends the claim when gRPC lets go of it.

        Args:
            claim: The claim.
            message: The answer.
            write: Writes it. It is never cancelled, since gRPC would keep its memory all the same; it ends when the
                call does.
            timeout_s: Maximum time.

        Returns:
            None = it is sent; otherwise the write that has not ended in time.
        """
        num_bytes = _counted(len(message))
        if not claim.num_bytes:  # it was expected to be tiny, and is in memory now
            claim.num_bytes = num_bytes
            self._take(claim)
        elif claim.num_bytes != num_bytes:
            self.resize(claim, num_bytes)
        loop = asyncio.get_running_loop()
        event = loop.create_future()
        # For each token: a timer and a callback take less than half of the time of `asyncio.wait`.
        timer = loop.call_later(timeout_s, wake, event)
        writing = asyncio.ensure_future(write(message))
        writing.add_done_callback(partial(self._end, claim, event))
        try:
            await event
        finally:
            timer.cancel()
        if not writing.done():
            return writing
        writing.result()
        return None

    def _end(
        self, claim: Claim, event: asyncio.Future[None], writing: asyncio.Future[None]
    ) -> None:
        if not writing.cancelled():
            writing.exception()  # seen, also when nobody waits for it
        self.release(claim)
        wake(event)

    def _take(self, claim: Claim) -> None:
        if claim.num_bytes:
            super()._take(claim)

    def _has_room(self, claim: Claim) -> bool:
        return self._is_small(claim) or super()._has_room(claim)

    def _may_have(self, claim: Claim) -> bool:
        held = self._held[claim.caller]
        return self._is_small(claim) or held + claim.num_bytes <= self._max_held

    def _is_small(self, claim: Claim) -> bool:
        return not claim.num_bytes or self._held[claim.caller] + claim.num_bytes <= _ALWAYS_BYTES


def _counted(num_bytes: int) -> int:
    return 0 if num_bytes <= _TINY_BYTES else COPIES * num_bytes
