"""Durations on a processor; those of a GPU are in tests/gpu."""

from __future__ import annotations

import pytest
import torch

from inference_service.engine.stopwatch import Stopwatch


def test_a_duration_is_counted_and_told() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch.running() as seconds:
        torch.ones(100, 100).sum()
    assert seconds() == stopwatch.total.total > 0
    with stopwatch.running() as again:
        pass
    assert stopwatch.total.total == pytest.approx(seconds() + again())
    assert sum(stopwatch.total.counts) == 2


def test_work_that_fails_is_not_counted() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), stopwatch.running():
        _ = 1 / 0
    assert sum(stopwatch.total.counts) == 0
