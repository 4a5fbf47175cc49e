"""The measurements for a GPU run on a CPU with tiny sizes, and their figures are there."""

from __future__ import annotations

import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.card.__main__ import PHASES


ROOT = Path(__file__).parents[2]
IN_EVERY_RUN = ("rates", "decode", "kernels")


def rehearse(out: Path, phases: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "DEVICE": "cpu",
        "OUT": str(out),
        "PHASES": phases,
        "PYTHON": sys.executable,
    }
    return subprocess.run(
        ["bash", "benchmarks/card.sh"],
        cwd=ROOT,
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def figures(out: Path, phase: str) -> dict[str, Any]:
    document = json.loads((out / f"{phase}.json").read_text())
    assert document["environment"]["tiny"]
    result: dict[str, Any] = document["figures"]
    return result


def test_the_script_runs_the_chosen_phases_and_only_those(tmp_path: Path) -> None:
    done = rehearse(tmp_path, " ".join(IN_EVERY_RUN))
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in tmp_path.iterdir()} == set(IN_EVERY_RUN)
    assert figures(tmp_path, "rates")["read_bytes_per_s"] > 0
    assert figures(tmp_path, "kernels")["wrong"] == []
    rows = figures(tmp_path, "decode")["rows"]
    assert {(row["batch"], row["sampling"]) for row in rows} == {
        (batch, sampling) for batch in (1, 4) for sampling in ("greedy", "penalised")
    }
    assert all(row["same_tokens"] == 1 for row in rows), "a CPU has no graphs"
    assert all(row[kind]["step_ms"] > 0 for row in rows for kind in ("graphs", "eager"))


@pytest.mark.full
@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase not in IN_EVERY_RUN])
def test_every_other_phase_runs(tmp_path: Path, phase: str) -> None:
    done = rehearse(tmp_path, phase)
    assert done.returncode == 0, done.stdout
    assert figures(tmp_path, phase)


def test_a_phase_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "nonsense rates")
    assert done.returncode == 1
    assert "nonsense: ended with status" in done.stdout
    assert figures(tmp_path, "rates")
