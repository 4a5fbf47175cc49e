"""Returns freed memory to the system."""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """Lets malloc return what it keeps for later; takes milliseconds, without the interpreter's lock. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
