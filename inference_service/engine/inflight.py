"""The sequences that the engine is computing for the front.

Owns the news that a consumer has not taken yet, and the memory of requests that were there when the engine died.
Must not know processes, sockets or where news come from.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
import hashlib
from typing import Final

from inference_service.engine.types import EngineRequest, SequenceOutput
from inference_service.errors import EngineUnavailableError


_MERGE_AT: Final = 64


class SequenceInFlight:
    """A sequence in flight and the news that its consumer has not taken yet.

    Attributes:
        request: What is computed.
        pixel_bytes: Size of its pictures.
        reservation: Its place in the pixel budget.
        sent: The engine knows it.
        abandoned: Its consumer is gone and the engine was told to abort it.
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


class Quarantine:
    """Remembers which requests were in flight when the engine died.

    A request that was there twice, and never finished in between, is taken for the cause and refused: clients
    retry, and one poisonous picture must not keep the engine down.
    """

    MAX_DEATHS: Final = 2
    MAX_SUSPECTS: Final = 256

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def blame(self, requests: Sequence[EngineRequest]) -> None:
        """Counts one death against every distinct request."""
        for key in {_fingerprint(request) for request in requests}:
            self._deaths[key] = self._deaths.pop(key, 0) + 1
        while len(self._deaths) > self.MAX_SUSPECTS:
            self._deaths.popitem(last=False)

    def clear(self, request: EngineRequest) -> None:
        """Takes the suspicion from a request that has finished."""
        if self._deaths:
            self._deaths.pop(_fingerprint(request), None)

    def holds(self, request: EngineRequest) -> bool:
        """Whether the request is to be refused."""
        return bool(self._deaths) and self._deaths.get(_fingerprint(request), 0) >= self.MAX_DEATHS


def _fingerprint(request: EngineRequest) -> bytes:
    digest = hashlib.sha256(repr(request.prompt_token_ids).encode())
    for image in request.images:
        digest.update(image.key)
    return digest.digest()
