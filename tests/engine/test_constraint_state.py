"""What constraints may cost a step, by clocks that the tests wind: no machine is too slow for them."""

from __future__ import annotations

from collections.abc import Callable
import itertools
from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
import numpy as np
import pytest

from inference_service.engine.constraint_state import (
    MAX_DEBT_S,
    ROW_S,
    STEP_S,
    ConstraintState,
    over_budget,
)
from inference_service.engine.masks import _fill


class Clock:
    """A clock that work winds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def state_of(cost_s: Callable[[], float] = lambda: 0.0) -> ConstraintState:
    """A state whose masks and tokens take this long, each."""
    clock = Clock()

    def works(*_: int) -> bool:
        clock.now_s += cost_s()
        return True

    matcher = SimpleNamespace(
        unsafe_compute_mask_ptr=works, consume_token=works, is_error=lambda: False
    )
    return ConstraintState(cast(LLMatcher, matcher), None, clock)


def step(states: list[ConstraintState]) -> list[ConstraintState]:
    """One token of each; those that must end."""
    _fill((state, np.zeros(1, np.int32)) for state in states)
    for state in states:
        state.take(0)
    return over_budget(states)


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_what_is_within_the_share_goes_on_for_ever(rows: int) -> None:
    cost_s = 0.49 * max(ROW_S, STEP_S / rows)
    states = [state_of(lambda: cost_s) for _ in range(rows)]
    assert all(not step(states) for _ in range(200))


@pytest.mark.parametrize("rows", [1, 8, 16, 64])
def test_long_honest_texts_live_on_a_slow_processor(rows: int) -> None:
    """A pattern for a sentence of some hundred letters: three times what it takes here, and more now and then."""
    costs = itertools.cycle([0.0025, 0.0035, 0.003, 0.006])
    states = [state_of(lambda: next(costs)) for _ in range(rows)]
    assert all(not step(states) for _ in range(300))


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_what_grows_without_end_ends(rows: int) -> None:
    """As the tokens of an ambiguous grammar, by the square of the length."""
    lengths = iter(range(10**6))
    states = [state_of(lambda: next(lengths) ** 2 * 1e-8) for _ in range(rows)]
    for _ in range(10**4):
        ended = step(states)
        states = [state for state in states if state not in ended]
        if not states:
            return
    raise AssertionError("they would go on for ever")


def test_the_expensive_ones_end_and_not_those_beside_them() -> None:
    cheap = [state_of(lambda: 0.0004) for _ in range(40)]
    expensive = [state_of(lambda: 0.05) for _ in range(20)]
    rows = [*cheap, *expensive]
    for _ in range(100):
        ended = step(rows)
        assert not set(ended) & set(cheap)
        rows = [row for row in rows if row not in ended]
    assert rows == cheap


def test_one_that_takes_what_the_others_leave_goes_on() -> None:
    rows = [state_of(lambda: 0.00001) for _ in range(7)] + [state_of(lambda: 0.01)]
    assert all(not step(rows) for _ in range(500))


def test_one_expensive_token_is_forgiven() -> None:
    costs = [0.2, *[0.0001] * 40]
    row = state_of(lambda: costs[0])
    for _ in range(5):
        costs.insert(0, costs.pop())
        assert not step([row])
    assert row.debt_s == 0.0


def test_a_constraint_that_does_not_apply_yet_costs_nothing() -> None:
    waiting = ConstraintState(cast(LLMatcher, SimpleNamespace()), 7)
    rows = [state_of(lambda: 0.4 * STEP_S), *[waiting] * 60]
    assert all(not step_of_active(rows) for _ in range(200))


def step_of_active(rows: list[ConstraintState]) -> list[ConstraintState]:
    for row in rows:
        if row.active:
            row.take(0)
    return over_budget(rows)


@given(st.lists(st.lists(st.floats(0, 0.3), min_size=6, max_size=6), min_size=1, max_size=40))
def test_the_time_of_all_steps_is_bounded(costs: list[list[float]]) -> None:
    """Whatever rows do, those that go on have had no more than their shares and the debts that are allowed."""
    rows = [state_of() for _ in range(6)]
    spent = dict.fromkeys(rows, 0.0)
    allowed_s = 0.0
    for step_costs in costs:
        if not rows:
            break
        for row, cost_s in zip(rows, step_costs, strict=False):
            row.spent_s = cost_s
            spent[row] += cost_s
        allowed_s += max(ROW_S * len(rows), STEP_S)
        ended = over_budget(rows)
        rows = [row for row in rows if row not in ended]
        assert sum(row.debt_s for row in rows) <= MAX_DEBT_S + 1e-9
        assert sum(spent[row] for row in rows) <= allowed_s + MAX_DEBT_S + 1e-9
