"""The stand-in for events of CUDA does what those do on which the engine relies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.timeline import Event, Timeline


MakeEvents = Callable[[], tuple[Any, Any, Callable[[], None]]]


def stand_ins() -> tuple[Any, Any, Callable[[], None]]:
    timeline = Timeline()
    return Event(timeline), Event(timeline), lambda: timeline.queue(0.05)


def real() -> tuple[Any, Any, Callable[[], None]]:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    return begin, end, lambda: torch.cuda._sleep(100_000_000)


@pytest.mark.parametrize("make", [stand_ins, pytest.param(real, marks=pytest.mark.gpu)])
def test_events_tell_of_work_that_is_not_queued_or_not_done(make: MakeEvents) -> None:
    begin, end, work = make()
    assert begin.query(), "never recorded, so there is nothing to wait for"
    end.synchronize()
    begin.record()
    with pytest.raises(ValueError, match="recorded"):
        begin.elapsed_time(end)
    work()
    end.record()
    assert not end.query()
    with pytest.raises(RuntimeError, match="completed"):
        begin.elapsed_time(end)
    end.synchronize()
    assert end.query()
    assert begin.elapsed_time(end) > 1
