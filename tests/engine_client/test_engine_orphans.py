from __future__ import annotations

import asyncio
import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from tests.engine_client.engine_front import is_running, until
from tests.engine_client.fake_engine import SLOW, STALL


ROOT = Path(__file__).parents[2]
FRONT = [sys.executable, "-m", "tests.engine_client.engine_front"]


@pytest.mark.parametrize("engine_is", ["busy", "stalled", "stopped"])
def test_kill_9_of_the_front_leaves_no_engine(engine_is):
    marker = STALL if engine_is == "stalled" else SLOW
    with subprocess.Popen([*FRONT, str(marker)], stdout=subprocess.PIPE, cwd=ROOT) as front:
        assert front.stdout is not None
        engine_pid = int(front.stdout.readline())
        assert is_running(engine_pid)
        if engine_is == "stopped":  # it cannot even see that the socket is closed
            os.kill(engine_pid, signal.SIGSTOP)
        front.kill()
    asyncio.run(until(lambda: not is_running(engine_pid)))


def test_an_engine_whose_parent_is_gone_does_not_start():
    program = "from inference_service.child import die_with; die_with(1 << 30); print('on')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout == b""


def test_the_client_loads_neither_torch_nor_transformers():
    program = (
        "import sys; before = set(sys.modules); import inference_service.engine_client.client; "
        "added = sys.modules.keys() - before; "
        "print(*added & {'torch', 'transformers', 'numpy', 'grpc', 'pickle'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.split() == []
