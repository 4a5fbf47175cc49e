"""The memory for fetched files: bounded, and never a reason for requests to wait for each other."""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.errors import QueueFullError
from inference_service.media.file_budget import FileBudget


@hypothesis_settings(deadline=None)
@given(
    st.integers(1, 20),
    st.lists(
        st.tuples(
            st.sampled_from(["", "a", "b"]),
            st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=4),
        ),
        max_size=8,
    ),
)
def test_all_requests_end_and_only_the_oldest_exceeds_the_limit(
    limit: int, requests: list[tuple[str, list[list[int]]]]
) -> None:
    budget = FileBudget(limit, wait_s=3600)
    held: dict[int, int] = {}  # in the order of first bytes

    async def request(number: int, caller: str, files: list[list[int]]) -> None:
        with budget.of_request(caller) as fetched:

            async def fetch(chunks: list[int]) -> None:
                for size in chunks:
                    await asyncio.sleep(0)
                    if not fetched.has_room(size):
                        held.setdefault(number, 0)
                        await fetched.wait_for_room(size, "f")
                    fetched.add(size)
                    held[number] = held.get(number, 0) + size
                    assert sum([*held.values()][1:]) <= limit

            await asyncio.gather(*map(fetch, files))
            held.pop(number, None)

    async def main() -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(request(n, *asked) for n, asked in enumerate(requests)))

    asyncio.run(main())
    assert budget.used_bytes == 0
    assert not budget._requests


async def test_a_caller_who_has_nothing_does_not_wait_for_the_files_of_another() -> None:
    budget = FileBudget(100, wait_s=3600)
    with contextlib.ExitStack() as stack:
        for size in (50, 50, 1):  # its oldest, and others until its half is full
            mine = stack.enter_context(budget.of_request("greedy"))
            if mine.has_room(size):
                mine.add(size)
        assert budget.used_bytes == 50
        first = stack.enter_context(budget.of_request("modest"))
        second = stack.enter_context(budget.of_request("modest"))
        assert first.has_room(1)
        first.add(1)
        assert first.has_room(30)
        assert not second.has_room(1)
        assert not first.has_room(50), "the memory is bounded for all together"


async def test_one_caller_leaves_room_for_first_and_further_requests_of_others() -> None:
    budget = FileBudget(100, wait_s=3600)
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(budget.of_request("greedy")) for _ in range(4)]
        greedy[0].has_room(0)
        for files in greedy[1:]:
            while files.has_room(10):
                files.add(10)
        assert budget.used_bytes == 30, "three quarters of a half are 37"
        modest = [stack.enter_context(budget.of_request("modest")) for _ in range(2)]
        assert modest[0].has_room(70)
        assert modest[1].has_room(20)
        assert not modest[1].has_room(21)
        modest[1].add(20)
        greedy[1].free(5)
        assert not greedy[2].has_room(13)
        greedy[1].free(5)
        assert greedy[2].has_room(10)
    assert not budget._of_caller


async def test_a_file_that_waits_too_long_is_refused_with_a_retry() -> None:
    budget = FileBudget(2**20, wait_s=0.01)
    with budget.of_request() as first, budget.of_request() as second:
        assert first.has_room(2**20)
        first.add(2**20)
        assert not second.has_room(1)
        with pytest.raises(QueueFullError, match="1 MiB") as caught:
            await second.wait_for_room(1, "spec.messages[0]")
    assert caught.value.retry_after_s
    assert caught.value.field == "spec.messages[0]"


async def test_room_is_given_back_when_a_request_is_cancelled() -> None:
    budget = FileBudget(10, wait_s=3600)

    async def hold() -> None:
        with budget.of_request() as files:
            files.add(10)
            await asyncio.sleep(3600)

    with budget.of_request() as oldest:
        oldest.has_room(0)
        task = asyncio.ensure_future(hold())
        await asyncio.sleep(0)
        with budget.of_request() as waiting:
            assert not waiting.has_room(5)
            task.cancel()
            async with asyncio.timeout(20):
                await waiting.wait_for_room(5, "f")
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_still_read_for_a_request_that_has_ended_counts_nowhere() -> None:
    budget = FileBudget(100, wait_s=3600)
    with budget.of_request("a") as ended:
        ended.add(5)
    assert ended.has_room(1000)
    ended.add(1000)
    ended.free(3)
    await ended.take(50, "f")
    assert budget.used_bytes == 0
    assert not budget._requests
    with budget.of_request("a") as first, budget.of_request("b") as second:
        assert first.has_room(1000)  # the oldest one
        first.add(90)
        assert not second.has_room(20)
