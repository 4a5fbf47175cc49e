"""Ctrl-C while a command starts: it ends at once, in one line."""

from __future__ import annotations

from collections.abc import Generator
import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Final


INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as in shells."""

_CLEAR_LINE: Final = b"\r\x1b[K"
_STDERR: Final = 2


@contextlib.contextmanager
def ending_at_once() -> Generator[None, None, None]:
    """Ctrl-C ends the process at once, without cleaning up.

    For the time in which libraries are imported and files are fetched: a KeyboardInterrupt there would be lost in
    a library or wait for its threads. Does nothing where SIGINT is ignored (`nohup`, jobs in the background) or in
    another thread than the main one.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not in_main_thread or before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _end:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    end_interrupted()


def end_interrupted() -> None:
    """Ends the process in one line, which replaces a progress bar."""
    clear = _CLEAR_LINE if os.isatty(_STDERR) else b""
    with contextlib.suppress(OSError):
        os.write(_STDERR, clear + b"interrupted\n")
    os._exit(INTERRUPTED)
