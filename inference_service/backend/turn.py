"""The turn of one request: its place in the batch, the room for its pixels, and its part of the KV cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from inference_service.backend.admission import AdmittedRequest
from inference_service.errors import QueueFullError
from inference_service.line import Line, Place
from inference_service.metrics.requests import current_request
from inference_service.settings import ServiceSettings


_ANSWER_TOKENS: Final = 64
"""Longer answers find room in the cache or are computed again, as the scheduler decides."""
_MAX_WAITING_CACHES: Final = 16
_RETRY_AFTER_S: Final = 10.0
_SPARE_PART: Final = 8
"""The part of what callers share that is left to those who have nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What requests share.

    Attributes:
        batch: The line for places in the engine's batch.
        preparing: The line of requests with images for the line of the batch, until their images are decoded. Whoever
            has slow ones, or waits for the room of their pixels, keeps few places of the batch from others.
        decoders: The line for workers that decode images.
        tokens: The line for room in the KV cache.
        pixels: The line for room for pixels, in bytes, that are being decoded or on their way to the engine.
    """

    batch: Line
    tokens: Line
    preparing: Line
    decoders: Line
    pixels: Line

    @property
    def waiting(self) -> int:
        """Requests that wait for the batch; may be read in any thread."""
        return self.preparing.waiting + self.batch.waiting

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> Self:
        """As much of everything as the operator has set; how many tokens there are, a loaded engine tells."""
        few = max(2, settings.max_num_seqs // _SPARE_PART)
        pixel_bytes = settings.pixel_budget_mib * 2**20
        workers = settings.media_workers
        return cls(
            # A few more than the batch holds, so that the engine never waits for the front; workers the same.
            batch=Line(settings.max_num_seqs + 2 * few, spare=few),
            tokens=Line(1),
            preparing=Line(8 * workers, spare=2 * workers),
            decoders=Line(4 * workers, spare=workers),
            pixels=Line(pixel_bytes, spare=pixel_bytes // _SPARE_PART),
        )

    def hold_tokens(self, capacity: int) -> None:
        """Gives the line for the KV cache as many tokens as the loaded engine has."""
        # For callers who have nothing there, the engine makes room by preemption.
        self.tokens.spare = capacity // _SPARE_PART
        self.tokens.places = max(1, capacity + self.tokens.spare)


class Turn:
    """The turn of one request; a context that gives everything back at its end.

    Attributes:
        size: Number of its answers, or of its probes at a time.

    Args:
        admitted: The request.
        size: Number of its answers.
        pixel_bytes: Maximum bytes of its pixels.
        shared: What it shares with others.
    """

    def __init__(
        self, admitted: AdmittedRequest, *, size: int, pixel_bytes: int, shared: Shared
    ) -> None:
        self._admitted = admitted
        self.size = size
        self._pixel_bytes = pixel_bytes
        self._batch = shared.batch
        self._tokens = shared.tokens
        self._preparing = shared.preparing
        self._decoders = shared.decoders
        self._pixels = shared.pixels
        self._places: list[Place] = []
        self._preparation: Place | None = None
        self._room: Place | None = None
        self._arriving: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
        self._end_preparation()
        self.free_pixels()
        self.leave()

    async def arrive(self) -> None:
        """Waits until the request may use memory and compute; its images, which wait together, take one turn."""
        if self._arriving is None:
            self._arriving = asyncio.create_task(self._arrive())
        await asyncio.shield(self._arriving)

    @contextlib.asynccontextmanager
    async def decoding(self) -> AsyncIterator[None]:
        """A worker's time for one image, once the request has its turn: callers take their turns by images."""
        await self.arrive()
        worker = await self._decoders.enter(self._admitted.caller, 1)
        try:
            yield
        finally:
            worker.leave()

    def decoded(self, pixel_bytes: int) -> None:
        """Gives back the room that the pixels did not need: all images are decoded."""
        self._end_preparation()
        if self._room is not None:
            self._room.shrink(pixel_bytes)

    async def reserve_tokens(self, prompt_tokens: int, max_tokens: int) -> None:
        """Waits for room in the KV cache: for the prompt and the beginning of every answer.

        Raises:
            QueueFullError: Those of this caller that wait need its part of the whole cache many times over.
        """
        line, caller = self._tokens, self._admitted.caller
        capacity, own = line.places - line.spare, line.waiting_size(caller)
        if own * max(1, line.waiting_callers) > _MAX_WAITING_CACHES * capacity:
            raise QueueFullError(
                f"Requests of yours with {own} tokens wait for the KV cache of {capacity} tokens, your part of the"
                " maximum; try again later.",
                retry_after_s=_RETRY_AFTER_S,
            )
        tokens = prompt_tokens + self.size * min(max_tokens, _ANSWER_TOKENS)
        with current_request().waiting("kv_cache"):
            self._places.append(await line.enter(caller, tokens, self._admitted.priority))

    def free_pixels(self) -> None:
        """Gives back the room of the pixels: the engine has them."""
        if self._room is not None:
            self._room.leave()

    def leave(self) -> None:
        """Gives back its places: the engine computes the request no more."""
        while self._places:
            self._places.pop().leave()

    async def _arrive(self) -> None:
        caller, priority = self._admitted.caller, self._admitted.priority
        with current_request().waiting("batch"):
            if self._pixel_bytes:
                self._preparation = await self._preparing.enter(caller, 1, priority)
            self._places.append(await self._batch.enter(caller, self.size, priority))
            self._admitted.begun = True
            if self._pixel_bytes:
                self._room = await self._pixels.enter(caller, self._pixel_bytes, priority)

    def _end_preparation(self) -> None:
        if self._preparation is not None:
            self._preparation.leave()
