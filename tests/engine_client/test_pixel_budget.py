from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.engine_client.budget import PixelBudget
from inference_service.errors import ImageTooLargeError
from inference_service.line import Place


def granted(*reservations: Place) -> list[bool]:
    return [reservation.granted.done() for reservation in reservations]


async def test_requests_of_a_caller_wait_in_order_for_room():
    budget = PixelBudget(10)
    first, large, small = budget.reserve(6), budget.reserve(8), budget.reserve(1)
    assert granted(first, large, small) == [True, False, False]
    first.leave()
    assert granted(large, small) == [True, True]
    assert budget.used_bytes == 9


async def test_leaving_the_line_admits_the_next_request():
    budget = PixelBudget(10)
    first, large, small = budget.reserve(6), budget.reserve(8), budget.reserve(1)
    large.leave()
    assert large.granted.cancelled()
    assert granted(small) == [True]
    small.leave()
    first.leave()
    assert budget.used_bytes == 0


async def test_the_next_room_is_for_a_caller_who_has_none():
    """Whoever queued before it: its requests hold their pixels until their long answers end."""
    budget = PixelBudget(80)
    running = [budget.reserve(10, "a") for _ in range(7)]
    running += [budget.reserve(10, "c")]
    waiting = [budget.reserve(10, "a") for _ in range(3)]
    late = budget.reserve(10, "b")
    assert granted(*running, *waiting, late) == [*8 * [True], *4 * [False]]
    running[0].leave()
    assert granted(*waiting, late) == [False, False, False, True]


async def test_a_caller_at_its_maximum_leaves_a_spare_part():
    budget = PixelBudget(80)
    running = [budget.reserve(10, "a") for _ in range(9)]
    assert granted(*running) == [*7 * [True], False, False]
    assert granted(budget.reserve(10, "b")) == [True]
    for reservation in running[:3]:
        reservation.leave()  # it has more than its half
    assert granted(*running[7:]) == [False, False]
    running[3].leave()
    assert granted(*running[7:]) == [True, False]


async def test_text_never_waits():
    budget = PixelBudget(10)
    budget.reserve(10)
    waiting = budget.reserve(1)
    text = budget.reserve(0)
    assert granted(text, waiting) == [True, False]
    text.leave()
    assert (budget.used_bytes, granted(waiting)) == (10, [False])


async def test_more_than_the_whole_budget_is_refused():
    with pytest.raises(ImageTooLargeError) as caught:
        PixelBudget(10).reserve(11)
    assert caught.value.metadata == {"limit": "10", "value": "11"}


@given(
    plan=st.lists(st.tuples(st.integers(0, 20), st.sampled_from("abc"), st.booleans()), max_size=40)
)
def test_the_count_is_never_over_everybody_gets_room_and_it_ends_at_zero(plan):
    async def play():
        budget, open_ = PixelBudget(20), []
        for size, caller, leaves in plan:
            open_.append((size, budget.reserve(size, caller)))
            if leaves:
                open_.pop(len(open_) // 2)[1].leave()
            had = sum(size for size, place in open_ if place.granted.done())
            assert budget.used_bytes == had <= 20
            assert had or not any(size for size, _ in open_), "the line stands still"
        while open_:
            at = next(i for i, (_, place) in enumerate(open_) if place.granted.done())
            open_.pop(at)[1].leave()
        assert budget.used_bytes == 0

    asyncio.run(play())
