"""A request in flight, with the buffered outputs of its choices."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
import logging
from typing import Final

from inference_service.engine_client.backlog import Backlog
from inference_service.engine_client.interface import nothing
from inference_service.engine_protocol.messages import ChoiceOutput, EngineRequest, FinishReason
from inference_service.errors import DeadlineError, ServiceError
from inference_service.line import Place


MUCH_BYTES: Final = 2**20
"""Requests of which less waits need not be looked at."""

logger = logging.getLogger(__name__)


class RequestInFlight:
    """A request in flight and the buffered outputs of its choices.

    Attributes:
        request: The request.
        pixel_bytes: Size of its images.
        reservation: Its reservation in the pixel budget.
        sent: It was sent to the engine.
        abandoned: Its consumer is gone and an abort was sent to the engine.
        open_choices: Choices that have not finished.
        unanswered_choices: Choices that neither got a token while there was a consumer nor finished by themselves. A
            request without any is answered, even if its consumer left at a stop string, which is an abort here.
        counted: Called with the number of tokens of each output.
        computed: Called once, when it is forgotten.
        over: Set at the last output of its last choice, or at its failure.
    """

    def __init__(self, request: EngineRequest, pixel_bytes: int, reservation: Place) -> None:
        self.request = request
        self.pixel_bytes = pixel_bytes
        self.reservation = reservation
        self.sent = False
        self.abandoned = False
        self.open_choices = set(range(request.num_choices))
        self.unanswered_choices = set(self.open_choices)
        self.counted: Callable[[int], None] = nothing
        self.computed: Callable[[], None] = nothing
        self.over = asyncio.Event()
        # By choice, the one waiting longest first.
        self._buffered: dict[int, Backlog] = {}
        self._error: ServiceError | None = None
        self._wake = asyncio.Event()

    def push(self, output: ChoiceOutput) -> None:
        """Buffers an output; outputs after the finish of their choice are dropped."""
        if output.choice_index not in self.open_choices:
            return
        if output.token_ids:
            self.counted(len(output.token_ids))
        if (output.token_ids and not self.abandoned) or _finished_by_itself(output):
            self.unanswered_choices.discard(output.choice_index)
        if not (self.abandoned or self._error):
            self._buffered.setdefault(output.choice_index, Backlog()).push(output)
        if output.finish_reason is not None:
            self.open_choices.remove(output.choice_index)
            if not self.open_choices:
                self.over.set()
        self._wake.set()

    def push_aborted(self, choice_index: int | None) -> None:
        """Ends one choice, or (None) all, of a request that was not sent to the engine."""
        for index in sorted(self.open_choices):
            if choice_index in (None, index):
                self.push(ChoiceOutput.aborted(self.request.request_id, index))

    @property
    def buffered_bytes(self) -> int:
        """Size of the outputs that wait, as far as it matters."""
        return sum(backlog.packed_bytes for backlog in self._buffered.values())

    def fail(self, error: ServiceError) -> None:
        """Ends the request with an error, at once: buffered outputs are dropped."""
        self.over.set()
        self.cut(error)

    def cut(self, error: ServiceError) -> None:
        """Gives its consumer an error instead of what waits and comes; the engine still computes it."""
        self._buffered.clear()
        self._error = error
        self._wake.set()

    async def next(self) -> ChoiceOutput:
        """Waits for outputs and returns a piece of the choice that waits longest: all, unless they are many."""
        await self._wake.wait()
        if any(backlog.has_pieces for backlog in self._buffered.values()):
            await asyncio.sleep(0)  # one who takes them all would keep the loop from everybody else
        if self._error is not None:
            raise self._error
        choice_index = next(iter(self._buffered))
        backlog = self._buffered.pop(choice_index)
        output = backlog.pop()
        if backlog:
            self._buffered[choice_index] = backlog
        if not self._buffered:
            self._wake.clear()
        return output


def cut_greediest(flights: Iterable[RequestInFlight], limit_bytes: int) -> RequestInFlight | None:
    """Cuts the request of which most waits, of the caller of whom most waits, if it is too much of all together.

    Returns:
        The request, which the engine need not compute any more; None = it is not too much.
    """
    waiting = {flight: flight.buffered_bytes for flight in flights}
    total = sum(waiting.values())
    if total <= limit_bytes:
        return None
    of_callers: Counter[str] = Counter()
    for flight, size in waiting.items():
        of_callers[flight.request.caller] += size
    greedy = max(waiting, key=lambda each: (of_callers[each.request.caller], waiting[each]))
    request_id = greedy.request.request_id
    logger.warning({"message": "an answer is not read in time", "request_id": request_id})
    greedy.cut(
        DeadlineError(
            f"The client did not read its answer in time: {waiting[greedy]} bytes of log probabilities wait for it, and"
            f" {total} for all clients, of at most {limit_bytes}. Read faster, or ask for fewer (spec.logprobs)."
        )
    )
    return greedy


def _finished_by_itself(output: ChoiceOutput) -> bool:
    return output.finish_reason not in (None, FinishReason.ABORTED)
