"""A request in flight, with the buffered outputs of its choices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from inference_service.engine_client.interface import nothing
from inference_service.engine_protocol.messages import ChoiceOutput, EngineRequest, FinishReason
from inference_service.errors import ServiceError
from inference_service.line import Place


_MERGE_AT: Final = 64


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
        self._buffered: dict[int, list[ChoiceOutput]] = {}
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
        buffered = self._buffered.setdefault(output.choice_index, [])
        buffered.append(output)
        if len(buffered) >= _MERGE_AT:
            buffered[:] = [merge(buffered)]
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

    def fail(self, error: ServiceError) -> None:
        """Ends the request with an error, at once: buffered outputs are dropped."""
        self.over.set()
        self._error = error
        self._wake.set()

    async def next(self) -> ChoiceOutput:
        """Waits for outputs and returns all of the choice that waits longest, merged into one."""
        await self._wake.wait()
        if self._error is not None:
            raise self._error
        choice_index = next(iter(self._buffered))
        outputs = self._buffered.pop(choice_index)
        if not self._buffered:
            self._wake.clear()
        return merge(outputs)


def merge(outputs: Sequence[ChoiceOutput]) -> ChoiceOutput:
    """Joins consecutive outputs of one choice into one."""
    if len(outputs) == 1:
        return outputs[0]
    cached = [o.num_cached_tokens for o in outputs if o.num_cached_tokens is not None]
    return ChoiceOutput(
        request_id=outputs[0].request_id,
        choice_index=outputs[0].choice_index,
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs),
        prompt_logprobs=tuple(entry for output in outputs for entry in output.prompt_logprobs),
        num_cached_tokens=cached[0] if cached else None,
        num_cache_write_tokens=sum(output.num_cache_write_tokens for output in outputs),
        timings=next((output.timings for output in outputs if output.timings is not None), None),
        probe=outputs[-1].probe,
        finish_reason=outputs[-1].finish_reason,
        failure=outputs[-1].failure,
    )


def _finished_by_itself(output: ChoiceOutput) -> bool:
    return output.finish_reason not in (None, FinishReason.ABORTED)
