"""Measures how long work takes on the device, which may still run when the call that enqueued it has returned."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
import contextlib
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
            A function that tells its seconds; 0 = the device has not done it yet, or the body has raised.
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
        recorded = False

        def seconds() -> float:
            # An event that was never recorded counts as passed, but has no time.
            return begin.elapsed_time(end) / 1000 if recorded and end.query() else 0.0  # type: ignore[no-untyped-call]

        yield seconds
        end.record(stream)
        recorded = True
        self._pending.append((begin, end))

    @property
    def total(self) -> Histogram:
        """The durations of the work that is done."""
        while self._pending and self._pending[0][1].query():  # type: ignore[no-untyped-call]
            begin, end = self._pending.popleft()
            self._counter.add(begin.elapsed_time(end) / 1000)
        return self._counter.total
