"""Signals as a process group gets them."""

from __future__ import annotations

import signal
import subprocess
import time


def end_by_a_burst(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGTERM many times at once, also into the handler of another one; the process must end."""
    for _ in range(20):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.00002)
    try:
        # The last ones may find no handler any more.
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
