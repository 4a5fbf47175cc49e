"""One call on the wire: reads and writes its messages as bytes, each within bounds of time and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
import time
from typing import Final

import grpc
import grpc.aio

from inference_service.errors import DeadlineError
from inference_service.grpc_api.answer_budget import AnswerBudget
from inference_service.grpc_api.call_context import Context
from inference_service.grpc_api.fair_room import Claim
from inference_service.grpc_api.load_report import LOAD_KEY
from inference_service.grpc_api.message_budget import MessageBudget, MessageClaim
from inference_service.process_memory import freed


_CLOSE_S: Final = 1.0
"""Maximum time to send a status to a client that may not be reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """Limits on the messages of a call.

    Attributes:
        messages: The room for messages.
        answers: The room for answers that are not sent.
        receive_timeout_s: Maximum time to receive a message.
        send_timeout_s: Maximum time until the client takes a message.
    """

    messages: MessageBudget
    answers: AnswerBudget
    receive_timeout_s: float
    send_timeout_s: float


class Wire:
    """The messages of one call.

    Args:
        context: The call.
        caller: Who calls, for a fair share of the room for messages.
        limits: Limits on each message.
        deadline: End of the call as `time.monotonic()`; None = only its messages are limited in time.
        unread: Is told the size of a message that the client has not read in time, and what ends when it is gone.

    Attributes:
        load: Makes the report of the load, told whether the service failed to answer; None = the call reports none.
    """

    def __init__(
        self,
        context: Context,
        caller: str,
        limits: WireLimits,
        deadline: float | None,
        unread: Callable[[int, asyncio.Future[None]], None] = lambda *_: None,
    ) -> None:
        self._context = context
        self._caller = caller
        self._limits = limits
        self._deadline = deadline
        self._unread = unread
        self.load: Callable[[bool], bytes] | None = None
        self._claim: MessageClaim | None = None
        self._answer: Claim | None = None

    async def read(self) -> bytes | None:
        """The next message; None = the client sends no more.

        Raises:
            DeadlineError: It was not complete in time.
            QueueFullError: There is no room for it.
        """
        self.release()
        limits = self._limits
        try:
            async with asyncio.timeout(self._at_most(limits.receive_timeout_s)):
                self._claim = await limits.messages.reserve(self._caller)
            timeout_s = self._at_most(limits.receive_timeout_s)
            return await limits.messages.receive(self._claim, self._receive, timeout_s)
        except TimeoutError:
            raise DeadlineError(
                "The request was not complete before its deadline (the client's, else --request-timeout-s)."
            ) from None

    @property
    def message_bytes(self) -> int:
        """Size of the last message; 0 if there is none, or it has been released."""
        return 0 if self._claim is None else self._claim.num_bytes

    async def expect_answer(self, num_bytes: int) -> None:
        """Waits for room for an answer of about so many bytes, before it is made.

        Raises:
            DeadlineError: The caller's other answers take the room that it may have.
            QueueFullError: There is no room.
        """
        self._leave_answer()
        self._answer = await self._room(num_bytes, is_made=False)

    async def write(self, message: bytes) -> None:
        """Sends a message and waits until the client has taken it or has room for it.

        Raises:
            DeadlineError: It did not in time, or the caller's other answers take the room that it may have.
            QueueFullError: There is no room for it, and it is not tiny.
        """
        answers = self._limits.answers
        claim, self._answer = self._answer, None
        claim = claim or answers.try_reserve(self._caller, len(message))
        claim = claim or await self._room(len(message), is_made=True)
        timeout_s = self._at_most(self._limits.send_timeout_s)
        try:
            writing = await answers.send(claim, message, self._context.write, timeout_s)
        except grpc.aio.InternalError:
            # The connection is lost, which gRPC tells by a cancellation a little later.
            raise asyncio.CancelledError from None
        if writing is not None:
            self._unread(len(message), writing)
            raise DeadlineError(
                f"The client did not read its answer for {self._limits.send_timeout_s:g} s (--send-timeout-s), or not"
                " before its deadline."
            )

    async def _room(self, num_bytes: int, *, is_made: bool) -> Claim:
        try:
            async with asyncio.timeout(self._at_most(self._limits.receive_timeout_s)):
                return await self._limits.answers.reserve(self._caller, num_bytes, is_made=is_made)
        except TimeoutError:
            raise DeadlineError(
                "The answer found no room before its deadline (the client's, else --request-timeout-s): the caller's"
                " other answers that are not sent yet take all that it may have of --message-budget-mib."
            ) from None

    def end(self) -> None:
        """Says what the trailers of a call without an error have."""
        self._context.set_trailing_metadata(self._load_trailers(failed=False))

    async def abort(
        self,
        code: grpc.StatusCode,
        message: str,
        trailers: tuple[tuple[str, str | bytes], ...],
        *,
        failed: bool,
    ) -> None:
        """Ends the call with a status; raises what gRPC expects of an ended call.

        Args:
            code: The status.
            message: Its text.
            trailers: What else the caller is told.
            failed: The service failed to answer, and the caller made no mistake.
        """
        trailers = (*trailers, *self._load_trailers(failed=failed))
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._context.abort(code, message, trailers)
        except (TimeoutError, grpc.aio.InternalError):
            # The client is gone, or does not read what comes before the status.
            raise asyncio.CancelledError from None

    def release(self) -> None:
        """Frees the room of the last message, of which nothing is in memory any more."""
        if self._claim is not None:
            self._limits.messages.release(self._claim)
            freed(self._claim.num_bytes)
            self._claim = None

    def close(self) -> None:
        """Frees all room of a call that ends, but for what gRPC still has of its answer."""
        self.release()
        self._leave_answer()

    def _leave_answer(self) -> None:
        if self._answer is not None:
            self._limits.answers.release(self._answer)
            self._answer = None

    def _load_trailers(self, *, failed: bool) -> tuple[tuple[str, bytes], ...]:
        return () if self.load is None else ((LOAD_KEY, self.load(failed)),)

    async def _receive(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else message

    def _at_most(self, limit_s: float) -> float:
        remaining_s = limit_s if self._deadline is None else self._deadline - time.monotonic()
        return max(0.0, min(limit_s, remaining_s))


_current: ContextVar[Wire | None] = ContextVar("qwenvl_current_wire", default=None)


def enter_wire(wire: Wire) -> None:
    """Makes a call the current one of this task."""
    _current.set(wire)


def message_bytes() -> int:
    """Size of the current call's message: protobuf would have to serialise a message again to tell its size."""
    wire = _current.get()
    return 0 if wire is None else wire.message_bytes


def release_message() -> None:
    """Frees the room of the current call's message; does nothing outside of a call."""
    wire = _current.get()
    if wire is not None:
        wire.release()


async def expect_answer(num_bytes: int) -> None:
    """Waits for room for the current call's answer, see `Wire`; does nothing outside of a call."""
    wire = _current.get()
    if wire is not None:
        await wire.expect_answer(num_bytes)
