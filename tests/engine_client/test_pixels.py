"""The copy of pixels for the engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
import os
import threading

from inference_service.engine_client.pixels import copy_pixels


async def test_a_copy_does_not_wait_for_what_others_do_in_threads() -> None:
    done = threading.Event()
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(done.wait)
    try:
        async with asyncio.timeout(20):
            descriptor = await copy_pixels([b"abc", memoryview(b"de")])
    finally:
        done.set()
    with os.fdopen(descriptor, "rb") as copied:
        copied.seek(0)
        assert copied.read() == b"abcde"
