"""Threads that callers share: turns between callers, and places that are kept while work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import threading

import pytest

from inference_service.backend.prompts import TextWorkers
from inference_service.fair_threads import FairThreads


@pytest.fixture
def threads() -> Iterator[FairThreads]:
    made = FairThreads(1, "test")
    yield made
    made.close()


async def test_callers_take_turns(threads: FairThreads) -> None:
    """Another caller's work waits for what has begun, not for all that came before it."""
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go.wait(30)

    async with asyncio.TaskGroup() as group:
        group.create_task(threads.run("greedy", first))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(20):
            group.create_task(threads.run("greedy", lambda: done.append("greedy")))
        await asyncio.sleep(0)
        group.create_task(threads.run("other", lambda: done.append("other")))
        await asyncio.sleep(0)
        go.set()
    assert len(done) == 21
    assert done[0] == "other"


@pytest.mark.parametrize("characters", [1, 2**20 - 1])
async def test_texts_of_callers_take_turns(characters: int) -> None:
    """The same of the threads for prompts, for short texts, which have two, and for long ones."""
    workers = TextWorkers(None)
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(30)

    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(workers.run(characters, f"first {number}", hold))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(20):
            group.create_task(workers.run(characters, "greedy", lambda: done.append("greedy")))
        await asyncio.sleep(0)
        group.create_task(workers.run(characters, "other", lambda: done.append("other")))
        await asyncio.sleep(0)
        go.set()
    assert "other" in done[:3]
    workers.close()


async def begun_work(threads: FairThreads) -> tuple[asyncio.Task[object], threading.Event]:
    """Work of a caller that has begun, and what lets it end."""
    begun, go = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return go.wait(30)

    task = asyncio.create_task(threads.run("caller", work))
    await asyncio.to_thread(begun.wait, 30)
    return task, go


async def test_cancelled_work_keeps_its_place_until_it_ends(threads: FairThreads) -> None:
    task, go = await begun_work(threads)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    next_one = asyncio.create_task(threads.run("caller", lambda: "done"))
    await asyncio.sleep(0.05)
    assert not next_one.done()
    go.set()
    assert await next_one == "done"


async def test_what_waits_and_is_cancelled_leaves_the_line(threads: FairThreads) -> None:
    first, go = await begun_work(threads)
    waiting = asyncio.create_task(threads.run("caller", lambda: "never"))
    await asyncio.sleep(0)
    waiting.cancel()
    go.set()
    await first
    assert await threads.run("caller", lambda: "after") == "after"
    assert waiting.cancelled()


async def test_errors_are_passed_on_and_free_the_place(threads: FairThreads) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await threads.run("caller", lambda: 1 // 0)
    threads.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await threads.run("caller", lambda: 1)


def test_each_event_loop_has_its_own_line(threads: FairThreads) -> None:
    for _ in range(2):
        assert asyncio.run(threads.run("caller", lambda: 1)) == 1
