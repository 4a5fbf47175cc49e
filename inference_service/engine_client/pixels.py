"""Copies pixels into memory that the engine can map."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import contextlib
import os

from inference_service.engine_protocol import wire


async def copy_pixels(pixels: Sequence[bytes | memoryview]) -> int:
    """Copies pixels into a memfd, in a thread: tens of megabytes would block every stream."""
    copying = asyncio.get_running_loop().run_in_executor(None, wire.write_pixels, pixels)
    try:
        return await asyncio.shield(copying)
    except asyncio.CancelledError:
        copying.add_done_callback(_close_copy)  # the thread cannot be stopped
        raise


def _close_copy(copying: asyncio.Future[int]) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        os.close(copying.result())
