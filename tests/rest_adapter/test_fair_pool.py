"""Callers take turns in the threads that read, check and convert large bodies and answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
import contextlib
from functools import partial
import gc
import json
import threading
from typing import Any
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import requests

from rest_adapter import off_loop as pools
from rest_adapter.fair_pool import FairPool
from rest_adapter.off_loop import off_loop, work_for
from tests.rest_adapter.conftest import Adapter, wait_until


LARGE = 2**20


@contextlib.contextmanager
def held(pool: FairPool, threads: int = 1) -> Iterator[None]:
    """The threads of a pool do not run what is submitted within."""
    go, begun = threading.Event(), threading.Barrier(threads + 1)

    def hold() -> None:
        begun.wait(10)
        go.wait(60)

    blockers = [pool.submit(f"another {number}", hold) for number in range(threads)]
    begun.wait(10)
    try:
        yield
    finally:
        go.set()
        for blocker in blockers:
            blocker.result(10)


def run_all(pool: FairPool, callers: str, cancelled: frozenset[int] = frozenset()) -> list[str]:
    """Which work is run, in order; the work of each caller has numbers."""
    run: list[str] = []
    with held(pool):
        names = [f"{caller}{callers[:place].count(caller)}" for place, caller in enumerate(callers)]
        futures = [pool.submit(name[0], partial(run.append, name)) for name in names]
        for place in cancelled:
            assert futures[place].cancel()
    for place, future in enumerate(futures):
        if place not in cancelled:
            future.result(10)
    return run


@pytest.mark.parametrize(
    ("callers", "order"),
    [
        ("aaa", "a0 a1 a2"),
        ("aaab", "a0 b0 a1 a2"),
        ("aaaabbc", "a0 b0 c0 a1 b1 a2 a3"),
        ("baaab", "b0 a0 b1 a1 a2"),
    ],
)
def test_callers_take_turns(callers: str, order: str) -> None:
    assert run_all(FairPool(1, "test"), callers) == order.split()


@settings(max_examples=50, deadline=None)
@given(st.text("abcd", max_size=20), st.sets(st.integers(0, 19)))
def test_nobody_waits_for_more_than_one_turn_of_each_other(callers: str, left: set[int]) -> None:
    """What was cancelled is as if it had not been there."""
    cancelled = frozenset(place for place in left if place < len(callers))
    run = run_all(FairPool(1, "test"), callers, cancelled)
    assert len(run) == len(callers) - len(cancelled)
    for caller in set(callers):
        mine = [name for name in run if name[0] == caller]
        assert mine == sorted(mine, key=lambda name: int(name[1:]))
        before = run[: run.index(mine[0])] if mine else []
        assert len({name[0] for name in before}) == len(before)  # one of each, at most


def test_cancelled_work_is_dropped_at_once() -> None:
    """Its request may have megabytes, and its place would be waited for."""
    pool = FairPool(1, "test")
    body = Body()
    gone = weakref.ref(body)
    with held(pool):
        future = pool.submit("a", body.read)
        assert future.cancel()
        assert future.cancel()  # again
        assert not pool._waiting
        del body, future
        gc.collect()
        assert gone() is None
    assert pool.submit("a", lambda: 1).result(10) == 1


class Body:
    def read(self) -> Body:
        return self

    def fail(self) -> None:
        raise ValueError(self)


@pytest.mark.parametrize("name", ["read", "fail"])
def test_what_was_done_is_not_kept(name: str) -> None:
    """A cycle would keep a request until the next collection."""
    pool = FairPool(1, "test")
    body = Body()
    gone = weakref.ref(body)
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            pool.submit("a", getattr(body, name)).result(10)
        del body
        wait_until(lambda: gone() is None)
    finally:
        gc.enable()


async def test_work_that_fails_says_so_where_it_is_awaited() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await off_loop(LARGE, fail)
    assert await off_loop(LARGE, lambda: 1) == 1


async def test_a_caller_that_leaves_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FairPool(1, "test")
    monkeypatch.setattr(pools, "_COMMON", pool)
    run: list[str] = []

    async def work(caller: str) -> None:
        work_for(caller)
        await off_loop(LARGE, run.append, caller)

    with held(pool):
        tasks = [asyncio.create_task(work(caller)) for caller in "aab"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        assert [len(queue) for queue in pool._waiting.values()] == [1, 1]
    await asyncio.gather(*tasks[1:])
    assert run == ["a", "b"]


@pytest.mark.parametrize("size", [LARGE, 3 * LARGE])
def test_requests_take_turns_by_caller(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Without keys a host is a caller."""
    seen: list[str] = []

    class Pool(FairPool):
        def submit(self, caller: str, work: Callable[[], Any]) -> Any:
            seen.append(caller)
            return super().submit(caller, work)

    pool = "_COMMON" if size == LARGE else "_LARGEST"
    monkeypatch.setattr(pools, pool, Pool(1, "test"))
    body = {"model": "other", "messages": [{"role": "user", "content": "x" * size}]}
    response = requests.post(
        f"{adapter.url}/v1/chat/completions", data=json.dumps(body), timeout=30
    )
    assert response.status_code == 404  # the fake service takes long for such a text
    assert set(seen) == {"127.0.0.1"}
