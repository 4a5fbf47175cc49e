"""Encodes images in pieces over the steps of the engine, so that answers in progress get their tokens in between."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
import logging
import time
from typing import Any, Final, Protocol

import torch

from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.sequence import Sequence
from inference_service.engine.staging import Fence
from inference_service.engine.stopwatch import Stopwatch
from inference_service.engine_protocol.messages import ImageSpan
from inference_service.kernels.pieces import Pieces
from inference_service.progress import advance


Images = Seq[tuple[Sequence, ImageSpan]]
"""Images with a sequence each that has the pixels."""

_AHEAD: Final = 4
"""Pieces that may be queued on a GPU when the time of a step is over, beyond which they then take."""

logger = logging.getLogger(__name__)


class EncoderOutOfMemoryError(Exception):
    """The device ran out of memory while it encoded images.

    Attributes:
        keys: Their keys.
    """

    def __init__(self, keys: frozenset[bytes]) -> None:
        super().__init__("out of memory while encoding images")
        self.keys = keys


@dataclass(frozen=True, slots=True)
class _Image:
    """An image, the sequence for which it was planned, and its pixels, which may be needed after that has left."""

    sequence: Sequence
    span: ImageSpan
    pixels: memoryview


@dataclass(slots=True, eq=False)
class _Job:
    """Images of a caller that are encoded together; `pieces` is None before the first one."""

    caller: str
    images: Seq[_Image]
    pieces: Pieces[None] | None = None

    @property
    def keys(self) -> frozenset[bytes]:
        return frozenset(image.span.key for image in self.images)

    @property
    def num_tokens(self) -> int:
        return sum(image.span.num_tokens for image in self.images)


class Runner(Protocol):
    """What encodes images, as `engine.runner.ModelRunner` does."""

    def pixels(self, sequence: Sequence, image: ImageSpan) -> memoryview:
        """The pixels of an image of a sequence that has not left; they may be used after it has."""

    def encode(self, images: Seq[tuple[ImageSpan, memoryview]]) -> Pieces[None]:
        """Encodes images with these pixels together, in pieces, and fills the cache."""


class Encoder:
    """The images that are to be encoded, or are being encoded.

    Callers take turns. Of each, the oldest images and the smallest take turns: a small image need not wait for a large
    one, and a large one is not put off for ever by small ones.
    """

    def __init__(
        self,
        runner: Runner,
        cache: EncoderCache[Any],
        stopwatch: Stopwatch,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates an encoder without images.

        Args:
            runner: Encodes images.
            cache: Where the images are reserved.
            stopwatch: Measures every run.
            device: Where it computes.
            clock: Seconds.
        """
        self._runner = runner
        self._cache = cache
        self._stopwatch = stopwatch
        self._clock = clock
        self._jobs: list[_Job] = []
        self._fences = deque(Fence(device) for _ in range(_AHEAD))
        self._runs: dict[
            str, int
        ] = {}  # of each caller with images; whose last one is the longest ago comes first

    @property
    def busy(self) -> bool:
        """Whether an image is not encoded yet."""
        return bool(self._jobs)

    @property
    def pending(self) -> frozenset[bytes]:
        """Keys of the images that are not encoded yet."""
        return frozenset(key for job in self._jobs for key in job.keys)

    def add(self, images: Images) -> None:
        """Adds the images of a plan, which are reserved in the cache."""
        pending = self.pending
        by_caller: defaultdict[str, list[_Image]] = defaultdict(list)
        for sequence, span in images:
            if span.key not in pending:
                image = _Image(sequence, span, self._runner.pixels(sequence, span))
                by_caller[sequence.caller].append(image)
        self._jobs += [_Job(caller, new) for caller, new in by_caller.items()]

    def clear(self) -> None:
        """Gives up all images, and their places in the cache."""
        self._jobs.clear()
        self._cache.discard_unfilled()

    def run(self, limit_s: float) -> set[bytes]:
        """Computes pieces until the time is over, at least one; returns keys of images that cannot be encoded.

        Raises:
            EncoderOutOfMemoryError: All images are given up.
        """
        self._drop_abandoned()
        broken: set[bytes] = set()
        end_s = self._clock() + limit_s
        while self._jobs:
            job = self._next()
            try:
                if self._runs_to_end(job, end_s):
                    self._jobs.remove(job)
            except (torch.OutOfMemoryError, MemoryError) as error:
                self.clear()
                raise EncoderOutOfMemoryError(job.keys) from error
            except Exception:  # a bad image must not end other requests
                ids = sorted({image.sequence.request.request_id for image in job.images})
                logger.exception({"message": "encoding images failed", "request_ids": ids})
                broken |= self._break(job)
            if self._clock() >= end_s:
                break
        return broken

    def _next(self) -> _Job:
        """The job whose turn it is."""
        callers = dict.fromkeys(job.caller for job in self._jobs)
        self._runs = {who: count for who, count in self._runs.items() if who in callers}
        caller = next((who for who in callers if who not in self._runs), None)
        if caller is None:
            caller = next(iter(self._runs))
        runs = self._runs.pop(caller, 0) + 1
        self._runs[caller] = runs
        jobs = [job for job in self._jobs if job.caller == caller]
        return jobs[0] if runs % 2 else min(jobs, key=lambda job: job.num_tokens)

    def _runs_to_end(self, job: _Job, end_s: float) -> bool:
        """Computes pieces of some images until the time is over; returns whether that was the last one."""
        with self._stopwatch.running() as seconds, torch.inference_mode():
            for sequence in dict.fromkeys(image.sequence for image in job.images):
                sequence.encodings.append(seconds)
            if job.pieces is None:
                job.pieces = self._runner.encode(
                    [(image.span, image.pixels) for image in job.images]
                )
            for _ in job.pieces:
                advance()
                fence = self._fences[0]
                self._fences.rotate(-1)
                fence.wait()
                fence.record()
                if self._clock() >= end_s:
                    return False
        return True

    def _break(self, job: _Job) -> set[bytes]:
        """Tries the images of a failed job one by one; returns the key of a single one."""
        self._jobs.remove(job)
        if len(job.images) > 1:
            self._jobs[:0] = [_Job(job.caller, [image]) for image in job.images]
            return set()
        [image] = job.images
        self._cache.discard(image.span.key)
        return {image.span.key}

    def _drop_abandoned(self) -> None:
        """Drops images for which no sequence waits any more, if all that are encoded with them are such."""
        for job in list(self._jobs):
            if not any(self._cache.is_pinned(key) for key in job.keys):
                self._jobs.remove(job)
                for key in job.keys:
                    self._cache.discard(key)
