"""Tells how much of a download has arrived, where progress bars would fill a log file."""

from __future__ import annotations

from collections.abc import Callable, Generator
import contextlib
from pathlib import Path
import sys
import threading


INTERVAL_S = 10.0


def has_bars() -> bool:
    """Whether the client libraries draw progress bars: on a terminal."""
    return sys.stderr.isatty()


@contextlib.contextmanager
def told(
    root: Path, missing_bytes: int, tell: Callable[[str], None]
) -> Generator[None, None, None]:
    """Tells every few seconds what has arrived below a directory, unless there are bars.

    Args:
        root: The directory of the files, with what the library writes beside them.
        missing_bytes: How much is to arrive.
        tell: Called with the lines, in a thread.
    """
    if has_bars() or not missing_bytes:
        yield
        return
    before, ended = _size(root), threading.Event()

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            arrived = min(max(0, _size(root) - before), missing_bytes)
            percent = 100 * arrived // missing_bytes
            tell(f"fetched {arrived / 2**30:.2f} of {missing_bytes / 2**30:.2f} GiB ({percent} %)")

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _size(root: Path) -> int:
    """Bytes of all files below a directory; one that vanishes meanwhile counts as nothing."""
    total = 0
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    return total
