"""How slow a client may be: no time is saved up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rest_adapter.pace import Pace


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
