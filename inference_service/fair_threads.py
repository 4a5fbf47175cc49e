"""Threads that callers share fairly: work of one caller does not wait for all that another one has sent before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import contextlib
from typing import TypeVar
from weakref import WeakKeyDictionary

from inference_service.line import Line


T = TypeVar("T")


class FairThreads:
    """Runs work in threads, each of which is a place of a `Line`.

    Args:
        threads: Number of threads.
        name: Beginning of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)
        self._lines: WeakKeyDictionary[asyncio.AbstractEventLoop, Line] = WeakKeyDictionary()

    def close(self) -> None:
        """Ends the threads; work that waits is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, caller: str, work: Callable[[], T]) -> T:
        """Runs a caller's work when it is its turn.

        If this is cancelled, work that has begun goes on, and keeps its place until it ends.
        """
        loop = asyncio.get_running_loop()
        place = await self._line(loop).enter(caller, 1)
        try:
            future = self._pool.submit(work)
        except RuntimeError:  # closed
            place.leave()
            raise

        def leave(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its line
                loop.call_soon_threadsafe(place.leave)

        future.add_done_callback(leave)
        return await asyncio.wrap_future(future)

    def _line(self, loop: asyncio.AbstractEventLoop) -> Line:
        line = self._lines.get(loop)
        if line is None:
            line = self._lines[loop] = Line(self._threads, lately_s=0.0)
        return line
