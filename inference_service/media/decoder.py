"""Decodes the images of requests in worker processes, within the limits of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from inference_service.errors import (
    ERRORS_BY_REASON,
    ImageTooLargeError,
    InternalError,
    InvalidImageError,
)
from inference_service.media.checks import check_fits, inspect
from inference_service.media.containers.base import CostlyHeaderError, Effort, Header
from inference_service.media.images import DecodeLimits, FrameSpec, ProcessedImage
from inference_service.media.measuring import count_image, measured_decoding
from inference_service.media.pool import JobTimeoutError, WorkerPool
from inference_service.media.worker_process import Outcome, WorkerLostError
from inference_service.media.worker_protocol import (
    Done,
    HeaderWork,
    ImageWork,
    Inspected,
    Job,
    Refused,
    Reply,
    VideoWork,
)
from inference_service.model_spec import ImagePolicy
from inference_service.settings import ServiceSettings


_Reply = TypeVar("_Reply", Done, Inspected)

CHEAP_PIXELS: Final = 16_000_000
"""Pixels, times passes, up to which a job is cheap: a quarter of a second."""

HEADER_STEPS: Final = 1000
"""`Effort` on the event loop for one file, about a millisecond. Honest files rarely need more; a worker reads those."""


@dataclass(slots=True)
class Allowance:
    """What the images of one request may still cost.

    Attributes:
        pixels: Declared pixels.
        seconds: Time on the workers.
        caller: Whose the request is; empty = unknown.
    """

    pixels: int
    seconds: float
    caller: str = ""


class ImageDecoder:
    """Decodes images in worker processes. Belongs to one event loop."""

    def __init__(
        self,
        pool: WorkerPool,
        limits: DecodeLimits,
        *,
        image_timeout_s: float = 20.0,
        request_timeout_s: float = 60.0,
        max_request_pixels: int = 400_000_000,
    ) -> None:
        """Takes the workers and the limits.

        Args:
            pool: The workers.
            limits: Limits on each image as sent.
            image_timeout_s: Maximum time to decode an image.
            request_timeout_s: Maximum time to decode all images of a request.
            max_request_pixels: Maximum of declared pixels of all images and frames of a request.
        """
        self._pool = pool
        self._limits = limits
        self._image_timeout_s = image_timeout_s
        self._request_timeout_s = request_timeout_s
        self._max_request_pixels = max_request_pixels

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> ImageDecoder:
        """A decoder with the operator's limits."""
        return cls(
            WorkerPool(settings.media_workers, memory_mib=settings.decode_memory_mib),
            DecodeLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels),
            image_timeout_s=settings.decode_timeout_s,
            request_timeout_s=settings.request_decode_timeout_s,
            max_request_pixels=settings.max_request_pixels,
        )

    def start(self) -> None:
        """Starts the workers; call it in the event loop's thread."""
        self._pool.start()

    def close(self) -> None:
        """Kills the workers."""
        self._pool.close()

    def allowance(self, caller: str = "") -> Allowance:
        """What the images of a new request may cost."""
        return Allowance(self._max_request_pixels, self._request_timeout_s, caller)

    async def decode(
        self,
        data: bytes,
        allowance: Allowance,
        *,
        policy: ImagePolicy,
        min_pixels: int,
        max_pixels: int,
        field: str,
        rejects_oversized: bool = False,
    ) -> ProcessedImage:
        """`decode_image` in a worker process.

        Args:
            data: As `decode_image`.
            allowance: What decoding may still cost.
            policy: As `decode_image`.
            min_pixels: As `decode_image`.
            max_pixels: As `decode_image`.
            field: As `decode_image`.
            rejects_oversized: Refuse an image with more than `max_pixels`.

        Raises:
            InvalidImageError: As `decode_image`; or a decoder crashed on it.
            ImageTooLargeError: As `decode_image`; or it, or the request, takes too much time or memory; or it may not
                be resized.
            InternalError: No worker can be started, or it has a defect.
        """
        declared = await self._inspect(data, allowance, field)
        if rejects_oversized:
            check_fits(declared, max_pixels, field)
        cost = _cost(declared) + min_pixels  # enlarging costs as much
        work = ImageWork(policy, min_pixels, max_pixels, field)
        [image] = await self._run(work, [data], allowance, cost=cost, field=field)
        return image

    async def decode_video(
        self,
        files: Sequence[bytes],
        fields: Sequence[str],
        spec: FrameSpec,
        allowance: Allowance,
        *,
        field: str,
    ) -> tuple[ProcessedImage, ...]:
        """`decode_video` in a worker process; the same errors as `decode`. Equal files are decoded once."""
        unique: dict[bytes, int] = {}
        cost = 0.0
        for data, path in zip(files, fields, strict=True):
            if data not in unique:
                unique[data] = len(unique)
                cost += _cost(await self._inspect(data, allowance, path))
                await asyncio.sleep(0)  # hundreds of headers take milliseconds
        work = VideoWork(spec, tuple(unique[data] for data in files), tuple(fields))
        return await self._run(work, list(unique), allowance, cost=cost, field=field)

    async def _inspect(self, data: bytes, allowance: Allowance, field: str) -> Header:
        """Checks a file's header and the request's pixels before anything is decoded."""
        try:
            declared = inspect(data, self._limits, field, Effort(HEADER_STEPS))
        except CostlyHeaderError:
            work = HeaderWork(field)
            outcome = await self._outcome(work, [data], allowance, cost=0.0, field=field)
            declared = _as_expected(outcome.reply, Inspected).declared
        count_image(data)
        allowance.pixels -= declared.width * declared.height
        if allowance.pixels < 0:
            maximum = self._max_request_pixels
            raise ImageTooLargeError(
                f"The images and frames of the request have more than {maximum} pixels in all before resizing, the"
                " maximum (--max-request-pixels); send fewer or smaller ones.",
                field=field,
                metadata={"max_pixels": str(maximum)},
            )
        return declared

    async def _run(
        self,
        work: ImageWork | VideoWork,
        files: Sequence[bytes],
        allowance: Allowance,
        *,
        cost: float,
        field: str,
    ) -> tuple[ProcessedImage, ...]:
        with measured_decoding():
            outcome = await self._outcome(work, files, allowance, cost=cost, field=field)
        return _images(outcome)

    async def _outcome(
        self,
        work: HeaderWork | ImageWork | VideoWork,
        files: Sequence[bytes],
        allowance: Allowance,
        *,
        cost: float,
        field: str,
    ) -> Outcome:
        """What a worker answers, within the request's time."""
        timeout_s = min(len(files) * self._image_timeout_s, allowance.seconds)
        if timeout_s <= 0:
            raise self._too_slow(field)
        job = Job(work, self._limits, tuple(map(len, files)), cpu_s=timeout_s)
        try:
            outcome = await self._pool.run(
                job,
                files,
                expensive=cost > CHEAP_PIXELS,
                timeout_s=timeout_s,
                caller=allowance.caller,
            )
        except JobTimeoutError:
            raise self._too_slow(field) from None
        except WorkerLostError:
            raise InvalidImageError(
                "The decoder failed on this image; save it anew, or in another format.", field=field
            ) from None
        allowance.seconds -= outcome.seconds
        return outcome

    def _too_slow(self, field: str) -> ImageTooLargeError:
        image_s, request_s = self._image_timeout_s, self._request_timeout_s
        return ImageTooLargeError(
            f"Decoding takes too long: at most {image_s:g} s for an image (--decode-timeout-s) and {request_s:g} s for"
            " all of a request (--request-decode-timeout-s); send smaller or fewer images.",
            field=field,
            metadata={"max_seconds": f"{image_s:g}"},
        )


def _cost(declared: Header) -> float:
    """The pixels to compute."""
    return declared.width * declared.height * declared.passes


def _as_expected(reply: Reply, kind: type[_Reply]) -> _Reply:
    """The reply, or its error."""
    if isinstance(reply, Refused):
        error = ERRORS_BY_REASON.get(reply.reason, InternalError)
        raise error(reply.message, field=reply.field, metadata=reply.metadata)
    if not isinstance(reply, kind):
        raise InternalError("The decoder has a defect; see the log of the service.")
    return reply


def _images(outcome: Outcome) -> tuple[ProcessedImage, ...]:
    images = []
    start = 0
    for record in _as_expected(outcome.reply, Done).images:
        images.append(record.with_pixels(outcome.pixels[start : start + record.pixel_bytes]))
        start += record.pixel_bytes
    return tuple(images)
