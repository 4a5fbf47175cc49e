"""The trials of decisions: the same everywhere, balanced, and judged by their probabilities."""

from __future__ import annotations

import pytest

from demo_training.decisions import Verdict, decision_trials, digest, table


def test_trials_are_the_same_each_time_and_balanced() -> None:
    trials = decision_trials(6)
    assert digest(trials) == digest(decision_trials(6))
    assert digest(trials[:5]) != digest(trials)
    assert [trial.has_red_circle for trial in trials] == [True, False] * 3
    assert trials[0].png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("probabilities", "truth", "right", "brier"),
    [
        ((1.0, 0.0), 0, True, 0.0),
        ((1.0, 0.0), 1, False, 1.0),
        ((0.5, 0.5), 0, True, 0.25),
        ((0.7, 0.3), 1, False, 0.49),
        ((0.5, 0.25, 0.25), 0, True, 0.1875),
    ],
)
def test_verdicts(probabilities: tuple[float, ...], truth: int, right: bool, brier: float) -> None:
    verdict = Verdict.of(probabilities, truth)
    assert verdict.right == right
    assert verdict.brier == pytest.approx(brier)


def test_the_table() -> None:
    right, wrong = Verdict(right=True, brier=0.0), Verdict(right=False, brier=0.5)
    *_, there, colour = table([(right, wrong), (wrong, wrong)]).splitlines()
    assert there == "| is there a red circle? | 2 | 50.0 % | 0.2500 |"
    assert colour == "| which colour is the square? | 2 | 0.0 % | 0.5000 |"
