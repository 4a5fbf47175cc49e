"""A GPU as the host sees it: one queue of work that takes its time, a clock, and the events of torch.

`tests/gpu/test_events_on_gpu.py` holds `Event` to torch's.
"""

from __future__ import annotations

import pytest
import torch


class Timeline:
    """The host's clock, which moves only where the host works or waits, and the end of what is queued on the device.

    Attributes:
        now: The host's time in seconds.
        end: When the device has done all that is queued.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.end = 0.0

    def queue(self, seconds: float) -> None:
        """Queues work that takes the device so long."""
        self.end = max(self.now, self.end) + seconds

    def wait(self, until: float) -> None:
        """The host waits for a time, if it is not over."""
        self.now = max(self.now, until)


class Event:
    """What `torch.cuda.Event` does that is created with `enable_timing`, on a timeline."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._at: float | None = None

    def record(self, _stream: object = None) -> None:
        self._at = max(self._timeline.now, self._timeline.end)

    def query(self) -> bool:
        return self._at is None or self._at <= self._timeline.now

    def synchronize(self) -> None:
        if self._at is not None:
            self._timeline.wait(self._at)

    def elapsed_time(self, end: Event) -> float:
        if self._at is None or end._at is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if not (self.query() and end.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return 1000 * (end._at - self._at)


def use_timeline(monkeypatch: pytest.MonkeyPatch) -> Timeline:
    """Events that are created from now on are those of this timeline; its device is `torch.device("cuda")`."""
    timeline = Timeline()
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Event(timeline))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    return timeline
