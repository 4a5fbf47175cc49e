"""What the child processes of the front do alike."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
import resource
import signal
from typing import Final


_PR_SET_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """Ends this process when the thread in `parent` that started it ends. Linux only.

    The parent decides when a child ends: Ctrl-C or SIGTERM for the whole process group must not interrupt requests that
    the parent is draining.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def limit_memory(more_bytes: int) -> None:
    """Limits the address space of this process to what it has now and `more_bytes`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def silence() -> None:
    """Prints nothing from now on: libraries write what callers sent to standard error, which would forge log lines."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
