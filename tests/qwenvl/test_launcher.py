"""Programs that are started before they may serve."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import signal
import socket
import sys

import pytest

from qwenvl.launcher import Held, Launched


PROGRAM = """
from pathlib import Path
import sys
from qwenvl.launcher import Launched

launched = Launched(int(sys.argv[2]))
{before}
launched.tell()
sys.exit(7 if launched.wait() else 8)
"""


def held(before: str = "") -> Held:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return Held([sys.executable, "-c", PROGRAM.format(before=before)], environment)


@pytest.fixture
def program() -> Iterator[Held]:
    started = held()
    yield started
    started.close()
    started.process.wait(60)


def test_it_serves_when_it_is_released(program: Held) -> None:
    assert program.is_valid()
    assert program.is_valid(), "asked again"
    assert program.process.poll() is None
    program.release()
    assert program.process.wait(60) == 7


def test_it_may_be_released_before_it_has_checked(program: Held) -> None:
    program.release()
    assert program.process.wait(60) == 7


def test_it_ends_when_it_is_not_wanted(program: Held) -> None:
    program.close()
    assert program.process.returncode == -signal.SIGKILL


def test_it_ends_when_its_launcher_has_ended(program: Held) -> None:
    program._socket.close()
    assert program.process.wait(60) == 8


def test_it_is_not_ended_once_it_serves(program: Held) -> None:
    program.release()
    program.close()
    assert program.process.wait(60) == 7


def test_it_ends_silently_when_nobody_has_heard_that_it_is_valid(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The launcher may fail for another reason meanwhile, which is all that is to be said."""
    started = held()
    started._socket.recv(1, socket.MSG_PEEK)  # it has told
    started._socket.close()
    assert started.process.wait(60) == 8
    assert capfd.readouterr().err == ""


def test_wrong_settings_end_it() -> None:
    started = held(before="sys.exit(3)")
    assert not started.is_valid()
    assert started.process.wait(60) == 3
    started.release()  # too late: nothing happens


def test_a_program_without_a_launcher_serves_at_once() -> None:
    launched = Launched(None)
    launched.tell()
    assert launched.wait()


def test_a_program_that_cannot_be_started_leaves_nothing_open() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(FileNotFoundError):
        Held(["/no/such/program"], {})
    assert set(Path("/proc/self/fd").iterdir()) == before
