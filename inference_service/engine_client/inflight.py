"""Requests in flight with their buffered outputs, and the quarantine of requests that may crash the engine."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
import hashlib
import time
from typing import Final, NamedTuple

from inference_service.engine_protocol.messages import ChoiceOutput, EngineRequest, FinishReason
from inference_service.errors import EngineUnavailableError


_MERGE_AT: Final = 64


class RequestInFlight:
    """A request in flight and the buffered outputs of its choices.

    Attributes:
        request: The request.
        pixel_bytes: Size of its images.
        reservation: Its reservation in the pixel budget.
        sent: It was sent to the engine.
        abandoned: Its consumer is gone and an abort was sent to the engine.
        next_aborted: Requests that wait for its id to become free are aborted as well.
        open_choices: Choices that have not finished.
        answered: A choice finished other than by an abort.
        over: Set at the last output of its last choice, or at its failure.
    """

    def __init__(
        self, request: EngineRequest, pixel_bytes: int, reservation: asyncio.Future[None]
    ) -> None:
        self.request = request
        self.pixel_bytes = pixel_bytes
        self.reservation = reservation
        self.sent = False
        self.abandoned = False
        self.next_aborted = False
        self.open_choices = set(range(request.num_choices))
        self.answered = False
        self.over = asyncio.Event()
        self._buffered: dict[
            int, list[ChoiceOutput]
        ] = {}  # by choice, the one waiting longest first
        self._error: EngineUnavailableError | None = None
        self._wake = asyncio.Event()

    def push(self, output: ChoiceOutput) -> None:
        """Buffers an output; outputs after the finish of their choice are dropped."""
        if output.choice_index not in self.open_choices:
            return
        buffered = self._buffered.setdefault(output.choice_index, [])
        buffered.append(output)
        if len(buffered) >= _MERGE_AT:
            buffered[:] = [merge(buffered)]
        if output.finish_reason is not None:
            self.open_choices.remove(output.choice_index)
            self.answered |= output.finish_reason is not FinishReason.ABORTED
            if not self.open_choices:
                self.over.set()
        self._wake.set()

    def push_aborted(self, choice_index: int | None) -> None:
        """Ends one choice, or (None) all, of a request that was not sent to the engine."""
        for index in sorted(self.open_choices):
            if choice_index in (None, index):
                self.push(aborted(self.request.request_id, index))

    def fail(self, error: EngineUnavailableError) -> None:
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


def aborted(request_id: str, choice_index: int) -> ChoiceOutput:
    """The last output of an aborted choice."""
    return ChoiceOutput(
        request_id=request_id, choice_index=choice_index, finish_reason=FinishReason.ABORTED
    )


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
        finish_reason=outputs[-1].finish_reason,
        failure=outputs[-1].failure,
    )


class _Failures(NamedTuple):
    """Number of engine failures, and the time of the latest in seconds of the clock."""

    number: int
    latest: float


class Quarantine:
    """Remembers which requests were in flight when the engine failed.

    A request that was in flight at two failures, and did not finish in between, is assumed to be the cause and is
    refused: clients retry, and one bad image must not keep the engine down. Other requests in flight at the same time
    cannot be distinguished from it and are refused too, so the suspicion expires: then a harmless request is answered,
    and a harmful one causes at most one failure per period.
    """

    MAX_DEATHS: Final = 2
    MAX_SUSPECTS: Final = 256
    FORGIVEN_AFTER_S: Final = 600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[bytes, _Failures] = OrderedDict()

    def blame(self, requests: Sequence[EngineRequest]) -> None:
        """Counts one failure for every distinct request."""
        for key in {_fingerprint(request) for request in requests}:
            known = self._known(key)
            self._failures[key] = _Failures(1 if known is None else known.number + 1, self._clock())
            self._failures.move_to_end(key)
        while len(self._failures) > self.MAX_SUSPECTS:
            self._failures.popitem(last=False)

    def clear(self, request: EngineRequest) -> None:
        """Forgets the failures of a request that has finished."""
        if self._failures:
            self._failures.pop(_fingerprint(request), None)

    def holds(self, request: EngineRequest) -> bool:
        """Whether the request is to be refused."""
        known = self._known(_fingerprint(request)) if self._failures else None
        return known is not None and known.number >= self.MAX_DEATHS

    def _known(self, key: bytes) -> _Failures | None:
        """The failures of a request, unless they have expired."""
        known = self._failures.get(key)
        if known is None or self._clock() - known.latest < self.FORGIVEN_AFTER_S:
            return known
        del self._failures[key]
        return None


def _fingerprint(request: EngineRequest) -> bytes:
    digest = hashlib.sha256(repr(request.prompt_token_ids).encode())
    for image in request.images:
        digest.update(image.key)
    return digest.digest()
