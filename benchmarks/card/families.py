"""Every family on the device against itself on the CPU, by `tests/gpu`."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
from typing import Any

from benchmarks.card.setting import Setting


ROOT = Path(__file__).parents[2]


def measure(setting: Setting) -> dict[str, Any]:
    """Runs the tests with pytest alone, as the card's machine lacks the plugins of the test suite."""
    selection = ["--collect-only"] if setting.device.type == "cpu" else []
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(ROOT)]
    done = subprocess.run(
        [*command, *selection, "tests/gpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"status": done.returncode, "output": done.stdout.splitlines()[-60:]}
