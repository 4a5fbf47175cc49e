"""Runs work on large messages in threads, so that it does not stop the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import contextvars
import time
from typing import Final, TypeVar

from inference_service.process_memory import return_free_memory


INLINE_BYTES: Final = 8 * 2**10
"""Messages up to this size take less time than a change of threads costs others."""

_THREADS: Final = ThreadPoolExecutor(max_workers=2, thread_name_prefix="messages")

_TRIM_BYTES: Final = 2**20
_TRIM_EVERY_S: Final = 2.0

T = TypeVar("T")


async def for_size(num_bytes: int, work: Callable[[], T]) -> T:
    """Runs `work` on a message of `num_bytes` bytes: here if it is small, else in a thread, in the same context."""
    if num_bytes <= INLINE_BYTES:
        return work()
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: context.run(work))


_last_trim = 0.0


def freed(num_bytes: int) -> None:
    """Returns the memory of a large message to the system, now and then: malloc would keep it."""
    global _last_trim  # noqa: PLW0603 - of the process, as its memory is
    now = time.monotonic()
    if num_bytes >= _TRIM_BYTES and now - _last_trim >= _TRIM_EVERY_S:
        _last_trim = now
        asyncio.get_running_loop().call_later(_TRIM_EVERY_S, _THREADS.submit, return_free_memory)
