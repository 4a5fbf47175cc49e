"""What the child processes of the front do alike."""

from __future__ import annotations

import ctypes
import os
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
