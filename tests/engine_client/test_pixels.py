"""The copy of pixels for the engine."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
import os
import threading

import pytest

from inference_service.engine_client.pixels import copy_pixels
from inference_service.engine_protocol import wire
from tests.engine_client.engine_front import open_descriptors, until


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


async def test_copies_for_nobody_are_not_begun_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever left before a thread was free costs no copy; what has begun is closed when it ends."""
    await copy_free()  # what the event loop opens at its first use is not the copies'
    before, go = open_descriptors(), threading.Event()
    begun: list[bytes] = []
    write = wire.write_pixels

    def held(pixels: list[bytes]) -> int:
        begun.append(pixels[0])
        assert go.wait(20)
        return write(pixels)

    monkeypatch.setattr(wire, "write_pixels", held)
    copies = [asyncio.ensure_future(copy_pixels([bytes([i])])) for i in range(12)]
    await until(lambda: len(begun) == 4)
    for copy in copies[2:-1]:
        copy.cancel()
    await asyncio.wait(copies[2:-1])
    go.set()
    async with asyncio.timeout(20):
        for descriptor in await asyncio.gather(*copies[:2], copies[-1]):
            os.close(descriptor)
    assert sorted(begun) == [bytes([i]) for i in (0, 1, 2, 3, 11)]
    await until(lambda: open_descriptors() == before)


async def copy_free() -> None:
    os.close(await copy_pixels([b"a"]))
