"""Copies pixels into memory that the engine can map."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
import contextlib
import os
from typing import Final

from inference_service.engine_protocol import wire


# Of their own: every image waits for its copy, and shall not wait for the work of others.
_THREADS: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="pixels")


async def copy_pixels(pixels: Sequence[bytes | memoryview]) -> int:
    """Copies pixels into a memfd, in a thread: tens of megabytes would block every stream.

    Cancelled, it drops a copy that has not begun.
    """
    copying = _THREADS.submit(wire.write_pixels, pixels)
    try:
        return await asyncio.wrap_future(copying)
    except asyncio.CancelledError:
        copying.add_done_callback(_close_copy)  # a thread cannot be stopped
        raise


def _close_copy(copying: Future[int]) -> None:
    with contextlib.suppress(OSError, CancelledError):
        os.close(copying.result())
