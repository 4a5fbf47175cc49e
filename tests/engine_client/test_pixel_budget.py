from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.engine_client.budget import PixelBudget
from inference_service.errors import ImageTooLargeError


async def test_requests_wait_in_order_for_room():
    budget = PixelBudget(10)
    first, large, small = budget.reserve(6), budget.reserve(8), budget.reserve(1)
    assert (first.done(), large.done(), small.done()) == (True, False, False)
    budget.give_back(6, first)
    assert (large.done(), small.done(), budget.used_bytes) == (True, True, 9)


async def test_leaving_the_queue_admits_the_next_request():
    budget = PixelBudget(10)
    first, large, small = budget.reserve(6), budget.reserve(8), budget.reserve(1)
    budget.give_back(8, large)
    assert (large.cancelled(), small.done()) == (True, True)
    budget.give_back(1, small)
    budget.give_back(6, first)
    assert budget.used_bytes == 0


async def test_text_never_waits():
    budget = PixelBudget(10)
    budget.reserve(10)
    waiting = budget.reserve(1)
    assert budget.reserve(0).done()
    assert not waiting.done()


async def test_more_than_the_whole_budget_is_refused():
    with pytest.raises(ImageTooLargeError) as caught:
        PixelBudget(10).reserve(11)
    assert caught.value.metadata == {"limit": "10", "value": "11"}


@given(plan=st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=40))
def test_the_count_is_never_over_and_ends_at_zero(plan):
    async def play():
        budget, open_ = PixelBudget(10), []
        for size, leave in plan:
            open_.append((size, budget.reserve(size)))
            if leave:
                budget.give_back(*open_.pop(len(open_) // 2))
            granted = sum(size for size, future in open_ if future.done())
            assert budget.used_bytes == granted <= 10
        for size, future in open_:
            budget.give_back(size, future)
        assert budget.used_bytes == 0

    asyncio.run(play())
