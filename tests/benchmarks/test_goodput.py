"""The measurement of goodput: its arithmetic, and one run of it."""

from __future__ import annotations

import os

import pytest

from benchmarks import goodput
from benchmarks.goodput import ENGINE, Seen


def turn(tokens: int, refusals: int, front_s: float) -> Seen:
    return Seen(
        tokens=tokens,
        answers=tokens // 10,
        refusals=refusals,
        seconds=10.0,
        cpu_s={ENGINE: 5.0, "rest_adapter": front_s / 2, "inference_service": front_s / 2},
    )


def test_what_a_refusal_costs_is_what_answers_do_not() -> None:
    alone = [turn(1000, 0, 1.0), turn(2000, 0, 2.0)]
    beside = [turn(900, 100, 1.1), turn(1800, 100, 2.0)]
    # 0.9 and 1.8 s for the answers, so 2 ms for each refusal.
    assert goodput.row("x", beside, alone) == "| x | 135 | 0.900 | 0.900 | 0.893 | 10.0 | 2.00 |"
    assert goodput.row("x", alone, alone) == "| x | 150 | 1.000 | 1.000 | 1.000 | 0.0 |  |"


def test_processor_time_of_a_process_without_a_module_is_left_out() -> None:
    assert ENGINE not in goodput.cpu_by_module(os.getpid())


@pytest.mark.full
@pytest.mark.parametrize("api", ["rest", "grpc"])
def test_the_demo_model(api: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert goodput.main(["--api", api, "--rounds", "1", "--seconds", "2", "--ramp-s", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("|")[1].strip() for row in rows[3:]] == [*goodput.KINDS]
    assert all(float(row.split("|")[2]) > 0 for row in rows[3:])
