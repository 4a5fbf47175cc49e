"""One wish to stop that arrives as several signals."""

from __future__ import annotations

from collections.abc import Sequence
import subprocess
import sys

import pytest

from qwenvl.stop_signals import ECHO_S, StopSignals
from tests.support.signals import end_by_a_burst


@pytest.mark.parametrize(
    ("times", "insisted"),
    [
        ([0.0], False),
        ([0.0, 0.0, 0.001, ECHO_S - 0.01], False),
        ([0.0, ECHO_S], True),
        ([0.0, 0.1, 30.0], True),
        ([0.0, 30.0, 30.1], True),
    ],
)
def test_only_a_later_signal_insists(times: Sequence[float], insisted: bool) -> None:
    now = 0.0
    signals = StopSignals(clock=lambda: now)
    assert not signals.stopping
    for now in times:  # noqa: B007 - the clock reads it
        signals.arrived()
        assert signals.stopping
    assert signals.insisted is insisted


HANDLER = """
import signal, time
from qwenvl.stop_signals import StopSignals
signals = StopSignals()
signal.signal(signal.SIGTERM, lambda *_: signals.arrived())
print("up", flush=True)
while not signals.stopping:
    time.sleep(0.01)
"""


def test_signals_that_interrupt_the_handler_stop_nothing() -> None:
    """With a `threading.Event` in the handler, four of ten processes stood still."""
    for _ in range(8):
        with subprocess.Popen([sys.executable, "-c", HANDLER], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            end_by_a_burst(process)
