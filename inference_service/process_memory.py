"""The memory of this machine, and memory of this process that can be returned to it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
import ctypes
import os
from pathlib import Path
import time
from typing import Final


LARGE_BYTES: Final = 2**20
_AFTER_S: Final = 2.0
_THREAD: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="free-memory")
_last_s = 0.0

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_bytes() -> int:
    """The memory that processes here may use: that of the machine, or of the container."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return min(total, int(limit)) if limit.isdigit() else total


def return_free_memory() -> None:
    """Lets malloc return what it keeps for later; takes milliseconds, without the interpreter's lock. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def freed(num_bytes: int) -> None:
    """Returns the memory of work on so many bytes to the system, if they are many: malloc would keep it.

    Some seconds later, and once for all work meanwhile, as each time the whole heap is looked at. Called in an event
    loop.
    """
    global _last_s  # noqa: PLW0603 - of the process, as its memory is
    now = time.monotonic()
    if num_bytes >= LARGE_BYTES and now - _last_s >= _AFTER_S:
        _last_s = now
        asyncio.get_running_loop().call_later(_AFTER_S, _THREAD.submit, return_free_memory)
