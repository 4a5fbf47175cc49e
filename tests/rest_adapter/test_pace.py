"""How slow a client may be: no time is saved up with a body, and no client is cut that reads fast enough."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from rest_adapter.pace import Pace
from rest_adapter.paced import PacedResponse


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_fast_beginning_buys_no_time() -> None:
    clock = Clock()
    pace = Pace(30, 1024, clock)
    pace.note(40 * 2**20)
    assert pace.left_s == 30
    for _ in range(3):
        clock.now += 9.9
        pace.note(1)
    assert 0 < pace.left_s < 1
    clock.now += 1
    assert pace.left_s == 0


@given(st.lists(st.tuples(st.floats(0.01, 29), st.integers(0, 2**20)), max_size=40))
def test_nothing_else_is_demanded_than_the_rate(steps: list[tuple[float, int]]) -> None:
    """A client at the minimum rate or above it is never too slow."""
    clock = Clock()
    pace = Pace(30, 1024, clock)
    for pause_s, extra in steps:
        clock.now += pause_s
        assert pace.left_s > 0
        pace.note(int(pause_s * 1024) + 1 + extra)


class Socket:
    """The ASGI function to a client at a rate, behind a buffer that takes more when a third of it is free.

    Args:
        buffer: Its bytes.
        bytes_per_s: How fast the client reads.
    """

    def __init__(self, buffer: int, bytes_per_s: float) -> None:
        self._buffer = buffer
        self._rate = bytes_per_s
        self._clock = asyncio.get_running_loop().time
        self._empty_s = self._clock()
        self.received = 0
        self.is_whole = False

    async def __call__(self, message: Any) -> None:
        body = message.get("body", b"")
        if self._filled() + len(body) > self._buffer:
            await asyncio.sleep((self._filled() - self._buffer * 2 / 3) / self._rate)
        self._empty_s = max(self._empty_s, self._clock()) + len(body) / self._rate
        self.received += len(body)
        self.is_whole = message.get("more_body") is False

    def _filled(self) -> float:
        return max(0.0, self._empty_s - self._clock()) * self._rate


class Body:
    """That of a request, of whose answer 1 MiB/s must be read."""

    def pace_of_answer(self) -> Pace:
        return Pace(0.05, 2**20, saved=True)


@pytest.mark.parametrize(("rate", "buffer"), [(4.0, 1.0), (4.0, 0.1), (0.3, 0.5), (0.3, 0.1)])
async def test_who_reads_fast_enough_gets_all(rate: float, buffer: float) -> None:
    """A third of 1 MiB takes twice the allowed silence at that rate."""
    body: Any = Body()
    socket = Socket(int(buffer * 2**20), rate * 2**20)
    async with asyncio.timeout(10):
        await PacedResponse(bytes(2 * 2**20), body)({}, socket, socket)  # type: ignore[arg-type]
    assert socket.is_whole == (rate > 1)
    assert (socket.received == 2 * 2**20) == (rate > 1)
