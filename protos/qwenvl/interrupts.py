"""Signals while a command starts: it ends at once, after Ctrl-C in one line."""

from __future__ import annotations

from collections.abc import Generator
import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any, Final


INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as in shells."""

_TERMINATED: Final = 128 + signal.SIGTERM
_INIT: Final = 1
_CLEAR_LINE: Final = b"\r\x1b[K"
_STDERR: Final = 2


@contextlib.contextmanager
def ending_at_once() -> Generator[None, None, None]:
    """Ctrl-C ends the process at once, without cleaning up; so does SIGTERM the first process of a container.

    For the time in which libraries are imported and files are fetched: a KeyboardInterrupt there would be lost in
    a library or wait for its threads. Does nothing where SIGINT is ignored (`nohup`, jobs in the background) or in
    another thread than the main one. To a first process the kernel sends no signal that it does not handle, so that
    a pod would only end after its grace period (pid_namespaces(7)).
    """
    handlers: dict[int, tuple[Any, Any]] = {signal.SIGINT: (signal.default_int_handler, _end)}
    if os.getpid() == _INIT:
        handlers[signal.SIGTERM] = (signal.SIG_DFL, _terminate)
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    before = {number: signal.getsignal(number) for number in handlers}
    ours = {number: end for number, (usual, end) in handlers.items() if before[number] is usual}
    for number, end in ours.items():
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, end in ours.items():
            if signal.getsignal(number) is end:
                signal.signal(number, before[number])


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    end_interrupted()


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    os._exit(_TERMINATED)


def end_interrupted() -> None:
    """Ends the process in one line, which replaces a progress bar."""
    clear = _CLEAR_LINE if os.isatty(_STDERR) else b""
    with contextlib.suppress(OSError):
        os.write(_STDERR, clear + b"interrupted\n")
    os._exit(INTERRUPTED)
