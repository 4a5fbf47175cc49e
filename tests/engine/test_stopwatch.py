"""Durations on a processor, and on a stand-in for a GPU; those of a real one are in tests/gpu."""

from __future__ import annotations

import contextlib

import pytest
import torch

from inference_service.engine.stopwatch import Stopwatch
from tests.support.timeline import use_timeline


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_duration_is_counted_and_told() -> None:
    stopwatch = Stopwatch(CPU)
    with stopwatch.running() as seconds:
        torch.ones(100, 100).sum()
    assert seconds() == stopwatch.total.total > 0
    with stopwatch.running() as again:
        pass
    assert stopwatch.total.total == pytest.approx(seconds() + again())
    assert sum(stopwatch.total.counts) == 2


def test_a_duration_on_a_gpu_is_told_when_the_device_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timeline = use_timeline(monkeypatch)
    stopwatch = Stopwatch(CUDA)
    timeline.queue(1.0)
    with stopwatch.running() as seconds:
        timeline.queue(2.0)
        assert seconds() == 0, "the end is not known yet"
    timeline.wait(2.9)
    assert seconds() == stopwatch.total.total == 0
    timeline.wait(3.0)
    assert seconds() == stopwatch.total.total == 2.0


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_work_that_fails_takes_no_time(
    monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Also for who keeps the function that tells its seconds."""
    timeline = use_timeline(monkeypatch)
    stopwatch = Stopwatch(device)
    with contextlib.suppress(ZeroDivisionError), stopwatch.running() as seconds:
        timeline.queue(1.0)
        _ = 1 / 0
    timeline.wait(timeline.end)
    assert seconds() == 0
    assert sum(stopwatch.total.counts) == 0
