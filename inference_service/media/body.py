"""Reads the body of a response, counts it while it grows, and undoes its content codings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import httpcore
import httpx

from inference_service.media.content_coding import (
    CodingError,
    Decoding,
    Inflation,
    content_codings,
)
from inference_service.media.failures import Failure
from inference_service.media.local_files import too_large
from inference_service.media.policy import FetchPolicy
from inference_service.media.visit import Visit


_MIN_CHUNK: Final = 256  # bytes; the mean of smaller chunks costs more time than it brings data
_FREE_CHUNKS: Final = 1000


async def read_body(
    visit: Visit, policy: FetchPolicy, response: httpcore.Response, headers: httpx.Headers
) -> bytes:
    """The body without its content codings, counted in memory.

    Args:
        visit: The fetch.
        policy: With the limits.
        response: Its head has been received.
        headers: Those of the response.

    Raises:
        ImageTooLargeError: It has more bytes than allowed, as sent or decoded.
        ImageFetchError: It is empty, comes in too small pieces, or cannot be decoded.
        QueueFullError: There was no memory for it in time.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > policy.max_bytes:
        raise too_large(policy.max_bytes, visit.field)
    body = await _received(visit, policy, response.aiter_stream())
    if not body:
        raise visit.failed_with_status(response.status, "and no content")
    visit.limit.reschedule(None)  # the host has done its part
    decoding = Decoding(content_codings(headers.get("content-encoding", "")))
    try:
        while (inflation := decoding.next(body)) is not None:
            coded_bytes = len(body)
            body = await _inflated(visit, policy.max_bytes, inflation)
            visit.files.free(coded_bytes)
    except CodingError as error:
        raise visit.failed(Failure("content_encoding", f"sent {error}")) from None
    return body


async def _received(visit: Visit, policy: FetchPolicy, chunks: AsyncIterator[bytes]) -> bytes:
    """The body as sent, counted while reading: Content-Length may be false."""
    loop = asyncio.get_running_loop()
    body = bytearray()
    number, counted = 0, 0
    visit.limit.reschedule(loop.time() + policy.timeout_s)
    async for chunk in chunks:
        if not visit.files.has_room(len(chunk)):
            visit.limit.reschedule(None)
            await visit.files.wait_for_room(len(chunk), visit.field)
            visit.limit.reschedule(loop.time() + policy.timeout_s)
        visit.files.add(len(chunk))
        visit.progress.idle_bytes = 0
        body += chunk
        number += 1
        if len(body) > policy.max_bytes:
            raise too_large(policy.max_bytes, visit.field)
        if number > _FREE_CHUNKS + len(body) // _MIN_CHUNK:
            raise visit.failed(Failure("small_pieces", "sends the image in too small pieces"))
        if len(body) - counted >= policy.min_bytes_per_s * policy.timeout_s:
            counted = len(body)
            visit.limit.reschedule(loop.time() + policy.timeout_s)
    return bytes(body)


async def _inflated(visit: Visit, max_bytes: int, inflation: Inflation) -> bytes:
    """The body without one coding, counted while it grows: a few KB may become as many MB."""
    pieces: list[bytes] = []
    size = 0
    while not inflation.done:
        piece = await inflation.piece()
        size += len(piece)
        if size > max_bytes:
            raise too_large(max_bytes, visit.field)
        await visit.files.take(len(piece), visit.field)
        pieces.append(piece)
    return b"".join(pieces)
