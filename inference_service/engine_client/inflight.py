"""The sequences that the engine is computing for the front.

Owns the news that a consumer has not taken yet, and the memory of requests that were there when the engine died.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
import hashlib
import time
from typing import Final, NamedTuple

from inference_service.engine_protocol.messages import EngineRequest, SequenceOutput
from inference_service.errors import EngineUnavailableError


_MERGE_AT: Final = 64


class SequenceInFlight:
    """A sequence in flight and the news that its consumer has not taken yet.

    Attributes:
        request: What is computed.
        pixel_bytes: Size of its images.
        reservation: Its place in the pixel budget.
        sent: The engine knows it.
        abandoned: Its consumer is gone and the engine was told to abort it.
        next_aborted: Those who waited for its id when it was abandoned are aborted as well.
        over: Set at its last news or its failure.
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
        self.over = asyncio.Event()
        self._news: list[SequenceOutput] = []
        self._error: EngineUnavailableError | None = None
        self._wake = asyncio.Event()

    def push(self, output: SequenceOutput) -> None:
        """Takes news; the last one has a finish reason."""
        self._news.append(output)
        if len(self._news) >= _MERGE_AT:
            self._news = [merge(self._news)]
        if output.finish_reason is not None:
            self.over.set()
        self._wake.set()

    def fail(self, error: EngineUnavailableError) -> None:
        """Ends the sequence with an error, at once: news that were not taken are dropped."""
        self.over.set()
        self._error = error
        self._wake.set()

    async def next(self) -> SequenceOutput:
        """All news there are, as one; waits for some."""
        await self._wake.wait()
        if self._error is not None:
            raise self._error
        self._wake.clear()
        news, self._news = self._news, []
        return merge(news)


def merge(news: Sequence[SequenceOutput]) -> SequenceOutput:
    """Joins consecutive news of one sequence into one."""
    if len(news) == 1:
        return news[0]
    cached = [output.num_cached_tokens for output in news if output.num_cached_tokens is not None]
    return SequenceOutput(
        sequence_id=news[0].sequence_id,
        token_ids=tuple(token for output in news for token in output.token_ids),
        logprobs=tuple(entry for output in news for entry in output.logprobs),
        prompt_logprobs=tuple(entry for output in news for entry in output.prompt_logprobs),
        num_cached_tokens=cached[0] if cached else None,
        finish_reason=news[-1].finish_reason,
        error=news[-1].error,
    )


class _Deaths(NamedTuple):
    """Deaths of the engine, and when the latest was, in the clock's seconds."""

    number: int
    latest: float


class Quarantine:
    """Remembers which requests were in flight when the engine died.

    A request that was there twice, and never finished in between, is taken for the cause and refused: clients
    retry, and one poisonous image must not keep the engine down. Bystanders are refused with it, as nobody can
    tell them apart, so a suspicion ends with time: a request that is innocent is answered then, one that is not
    costs one death in that time.
    """

    MAX_DEATHS: Final = 2
    MAX_SUSPECTS: Final = 256
    FORGIVEN_AFTER_S: Final = 600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: OrderedDict[bytes, _Deaths] = OrderedDict()

    def blame(self, requests: Sequence[EngineRequest]) -> None:
        """Counts one death against every distinct request."""
        for key in {_fingerprint(request) for request in requests}:
            known = self._known(key)
            self._deaths[key] = _Deaths(1 if known is None else known.number + 1, self._clock())
            self._deaths.move_to_end(key)
        while len(self._deaths) > self.MAX_SUSPECTS:
            self._deaths.popitem(last=False)

    def clear(self, request: EngineRequest) -> None:
        """Takes the suspicion from a request that has finished."""
        if self._deaths:
            self._deaths.pop(_fingerprint(request), None)

    def holds(self, request: EngineRequest) -> bool:
        """Whether the request is to be refused."""
        known = self._known(_fingerprint(request)) if self._deaths else None
        return known is not None and known.number >= self.MAX_DEATHS

    def _known(self, key: bytes) -> _Deaths | None:
        """The deaths that count; one that was refused long enough begins anew."""
        known = self._deaths.get(key)
        if known is None or self._clock() - known.latest < self.FORGIVEN_AFTER_S:
            return known
        del self._deaths[key]
        return None


def _fingerprint(request: EngineRequest) -> bytes:
    digest = hashlib.sha256(repr(request.prompt_token_ids).encode())
    for image in request.images:
        digest.update(image.key)
    return digest.digest()
