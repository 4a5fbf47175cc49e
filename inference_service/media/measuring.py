"""Measures how media are fetched and decoded."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
import contextlib
import time
from typing import Final

from inference_service.errors import (
    ImageFetchError,
    ImageFetchTimeoutError,
    ImageTooLargeError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
    QueueFullError,
    ServiceError,
)
from inference_service.media.formats import READABLE, sniff
from inference_service.metrics import families
from inference_service.metrics.requests import current_request
from qwenvl.observability import Attribute


_RESULTS: Final = {
    ImageUrlRefusedError: "policy",
    InvalidImageUrlError: "invalid_url",
    ImageFetchTimeoutError: "timeout",
    ImageTooLargeError: "too_large",
    QueueFullError: "no_memory",
}
_RESULTS_BY_CAUSE: Final = {"no_such_name": "dns", "name": "dns", "status": "status"}


async def measured_fetch(fetching: Awaitable[bytes]) -> bytes:
    """Awaits the fetch of a URL, and counts how it ended."""
    begin_s, result = time.monotonic(), "cancelled"
    try:
        data = await fetching
        result = "ok" if sniff(data)[0] in READABLE else "not_image"
    except ServiceError as error:
        result = _result_of(error)
        raise
    finally:
        end_s = time.monotonic()
        families.IMAGE_FETCH.observe(end_s - begin_s)
        families.MEDIA_FETCHES.labels(result).inc()
        failure = "" if result == "ok" else result
        told = {Attribute.FETCH_RESULT: result}
        current_request().part("image_fetch", begin_s, end_s, told, error=failure)
    return data


def _result_of(error: ServiceError) -> str:
    if isinstance(error, ImageFetchError):
        return _RESULTS_BY_CAUSE.get(error.metadata.get("cause", ""), "connection")
    return _RESULTS.get(type(error), "connection")


@contextlib.contextmanager
def measured_decoding() -> Iterator[None]:
    """Measures the decoding of an image or a video, failed or not."""
    begin_s = time.monotonic()
    try:
        yield
    finally:
        end_s = time.monotonic()
        families.IMAGE_DECODE.observe(end_s - begin_s)
        current_request().part("image_decode", begin_s, end_s)


def count_image(data: bytes) -> None:
    """Counts a file whose header was read."""
    kind, _ = sniff(data)
    families.IMAGES.labels(READABLE[kind]).inc()
