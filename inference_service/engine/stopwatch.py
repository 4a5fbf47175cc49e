"""Measures how long work takes on the device, which may still run when the call that enqueued it has returned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
import contextlib
from functools import partial
import time

import torch

from inference_service.measures import Histogram, HistogramCounter


class Stopwatch:
    """Counts the durations of work on one device.

    On a GPU the beginning and the end are events in the stream of the work. They are read when the device has passed
    them, so that nothing waits for them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counter = HistogramCounter()
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[], float]]:
        """Measures the work of the body; work that raises is not counted.

        Yields:
            A function that tells its seconds; 0 = the device has not done it yet.
        """
        if self._device.type != "cuda":
            begin_s = end_s = time.monotonic()
            yield lambda: end_s - begin_s
            end_s = time.monotonic()
            self._counter.add(end_s - begin_s)
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(self._device)
        begin.record(stream)
        yield partial(_seconds_between, begin, end)
        end.record(stream)
        self._pending.append((begin, end))

    @property
    def total(self) -> Histogram:
        """The durations of the work that is done."""
        while self._pending and self._pending[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._pending.popleft()
            self._counter.add(begin.elapsed_time(end) / 1000)
        return self._counter.total


def _seconds_between(begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
    """The time between two events; 0 until the device has passed them."""
    return begin.elapsed_time(end) / 1000 if end.query() else 0.0  # type: ignore[no-untyped-call]
