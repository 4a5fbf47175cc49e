"""The memory of this machine, and memory of this process that can be returned to it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


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
