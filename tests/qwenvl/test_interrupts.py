"""What ends a command while it starts."""

import signal
import subprocess
import sys

import pytest


PROGRAM = """
import os, signal, sys, time
os.getpid = lambda: int(sys.argv[1])
from qwenvl.interrupts import ending_at_once
with ending_at_once():
    with ending_at_once():
        pass
    print("inside", flush=True)
    if sys.argv[2] == "inside":
        time.sleep(60)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print("behind", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("process_id", "place", "number", "status"),
    [
        (1, "inside", signal.SIGTERM, 143),
        (1, "inside", signal.SIGINT, 130),
        (1, "behind", signal.SIGTERM, -signal.SIGTERM),
        (7, "inside", signal.SIGTERM, -signal.SIGTERM),
        (7, "inside", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_command_that_starts(
    process_id: int, place: str, number: int, status: int
) -> None:
    """The first process of a container (1) would not get a SIGTERM that it does not handle."""
    command = [sys.executable, "-c", PROGRAM, str(process_id), place]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != place:
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == status
