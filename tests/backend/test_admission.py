"""The requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
from heapq import heapreplace
import random
import time

import pytest

from inference_service.backend.admission import Admission, AdmittedRequest, Demand
from inference_service.errors import (
    AbortedError,
    DrainingError,
    QueueFullError,
    RequestIdInUseError,
)


def test_an_id_is_free_again_when_its_request_has_ended() -> None:
    admission = Admission(2)
    with admission.admit("a", "me"):
        with pytest.raises(RequestIdInUseError) as caught, admission.admit("a", "me"):
            pass
        assert caught.value.field == "spec.request_id"
        assert admission.in_flight == 1
    with admission.admit("a", "you"):
        assert admission.in_flight == 1


def test_the_queue_is_bounded_and_a_failed_request_leaves_it() -> None:
    admission = Admission(1)

    def fail_in_flight() -> None:
        with admission.admit("a", "me"):
            with pytest.raises(QueueFullError), admission.admit("b", "me"):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_flight()
    assert admission.in_flight == 0


def test_only_the_caller_or_an_operator_aborts() -> None:
    admission = Admission(2)
    with admission.admit("a", "me") as mine, admission.admit("b", "me") as other:
        assert not admission.abort("a", "you")
        assert not mine.aborted
        assert admission.abort("a", "me") == ["a"]
        assert admission.abort("b", None) == ["b"]
        assert [mine.aborted, other.aborted] == [True, True]
    assert not admission.abort("a", "me")


async def test_closed_admission_lets_the_last_request_end() -> None:
    admission = Admission(2)
    with admission.admit("a", "me"):
        admission.close()
        with pytest.raises(DrainingError), admission.admit("b", "me"):
            pass
        waiting = asyncio.ensure_future(admission.wait_idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(10):
        await waiting


async def test_an_abort_ends_an_abortable_block_and_nothing_after_it() -> None:
    admission = Admission(1)
    with admission.admit("a", "me") as admitted:
        waiting = asyncio.ensure_future(_wait_abortably(admitted))
        await asyncio.sleep(0)
        assert admission.abort("a", "me")
        assert admission.abort("a", "me")
        async with asyncio.timeout(10):
            with pytest.raises(AbortedError):
                await waiting
    with admission.admit("a", "me") as admitted:
        async with admitted.abortable():
            pass
        assert admission.abort("a", "me")
        await asyncio.sleep(0)  # a cancellation would be raised here
        with pytest.raises(AbortedError):
            admitted.raise_if_aborted()


async def test_what_was_aborted_between_two_abortable_blocks_does_not_begin_the_next() -> None:
    admission = Admission(1)
    with admission.admit("a", "me") as admitted:
        async with admitted.abortable():
            pass
        assert admission.abort("a", "me")
        async with asyncio.timeout(10):
            with pytest.raises(AbortedError):
                await _wait_abortably(admitted)


async def test_a_timeout_in_an_abortable_block_is_no_abort() -> None:
    admitted = AdmittedRequest("a", "me", "a")
    with pytest.raises(TimeoutError):
        async with admitted.abortable(), asyncio.timeout(0):
            await asyncio.sleep(10)


async def _wait_abortably(admitted: AdmittedRequest) -> None:
    async with admitted.abortable():
        await asyncio.Event().wait()


def test_callers_do_not_learn_of_each_others_ids() -> None:
    admission = Admission(4)
    with admission.admit("same", "me") as mine, admission.admit("same", "you") as yours:
        assert mine.engine_id == "same"
        assert yours.engine_id != "same"
        assert admission.abort("same", "you") == [yours.engine_id]
        assert not mine.aborted
        with pytest.raises(RequestIdInUseError), admission.admit("same", "you"):
            pass
        assert sorted(admission.abort("same", None)) == sorted([mine.engine_id, yours.engine_id])
    with admission.admit("same", "you") as again:
        assert again.engine_id == "same"


async def test_a_caller_below_its_share_replaces_the_newest_waiting_request_of_the_greediest() -> (
    None
):
    admission = Admission(4)
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(admission.admit(f"g{i}", "greedy")) for i in range(4)]
        greedy[3].begun = True  # the newest has a place and keeps it
        waiting = asyncio.ensure_future(_wait_abortably(greedy[2]))
        await asyncio.sleep(0)
        admission.check("small")
        with pytest.raises(QueueFullError):
            admission.check("greedy")
        stack.enter_context(admission.admit("s", "small"))
        with pytest.raises(QueueFullError) as caught:
            await waiting
        assert "--max-queue" in caught.value.message
        assert not greedy[2].aborted


async def test_the_least_urgent_waiting_request_gives_way_first() -> None:
    admission = Admission(4)
    with contextlib.ExitStack() as stack:
        greedy = [
            stack.enter_context(admission.admit(f"g{number}", "greedy", priority))
            for number, priority in enumerate((0, 7, 7, -1))
        ]
        waiting = asyncio.ensure_future(_wait_abortably(greedy[2]))
        await asyncio.sleep(0)
        stack.enter_context(admission.admit("s", "small"))
        with pytest.raises(QueueFullError):
            await waiting


def test_no_caller_takes_more_than_its_share_by_replacing() -> None:
    admission = Admission(4)
    with contextlib.ExitStack() as stack:
        for index in range(4):
            stack.enter_context(admission.admit(f"g{index}", "greedy"))
        admitted = 0
        with contextlib.suppress(QueueFullError):
            for index in range(4):
                stack.enter_context(admission.admit(f"s{index}", "small"))
                admitted += 1
        assert admitted == 2


def test_everything_that_has_begun_is_kept() -> None:
    admission = Admission(2)
    with admission.admit("a", "greedy") as first, admission.admit("b", "greedy") as second:
        first.begun = second.begun = True
        with pytest.raises(QueueFullError), admission.admit("s", "small"):
            pass


@pytest.mark.parametrize("spread", [1.0, 1.02, 1.25, 1.5])
def test_retry_after_is_the_time_in_which_the_queue_was_lately_answered(
    monkeypatch: pytest.MonkeyPatch, spread: float
) -> None:
    now = [100.0]
    monkeypatch.setattr(random, "uniform", lambda *_: spread)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    admission = Admission(4)
    for index in range(6):
        with admission.admit(f"{index}", "me") as admitted:
            admitted.begun = True
            now[0] += 2.0  # one answer in two seconds
    with contextlib.ExitStack() as stack:
        for index in range(4):
            stack.enter_context(admission.admit(f"{index}", "me"))
        with pytest.raises(QueueFullError) as caught:
            admission.check("me")
    # Those in flight and the one that waits now.
    assert caught.value.retry_after_s == round(5 * 2.0 * spread)


async def test_a_cut_ends_what_waits_and_what_begins_to_wait() -> None:
    admission = Admission(2)
    with admission.admit("a", "me") as waits, admission.admit("b", "me") as later:
        waiting = asyncio.ensure_future(_wait_abortably(waits))
        await asyncio.sleep(0)
        admission.cut()
        for ended in (waiting, _wait_abortably(later)):
            with pytest.raises(DrainingError):
                await ended


@pytest.mark.parametrize("keys", [1, 200])
def test_whoever_waits_as_told_is_refused_once_or_twice(keys: int) -> None:
    """However many wait, with one key or with many."""
    now, rate, in_flight, free = [0.0], 10.0, 20, 0.0
    demand = Demand(lambda: now[0])
    coming = [(number / 1000, number) for number in range(200)]  # when each asks
    refusals = answers = 0
    while now[0] < 200:
        before, (now[0], number) = now[0], coming[0]
        free = min(in_flight, free + (now[0] - before) * rate)
        wait_s = 0.1
        if free >= 1:
            free -= 1
            answers += now[0] > 50
        else:
            wanted = in_flight + demand.refused(f"{number % keys}")
            wait_s = demand.window_s = max(1.0, wanted / rate)
            refusals += now[0] > 50
        heapreplace(coming, (now[0] + wait_s, number))
    assert answers > 0.95 * 150 * rate
    assert refusals < 2 * answers


def test_refusals_of_a_while_ago_do_not_count() -> None:
    now = [0.0]
    demand = Demand(lambda: now[0])
    assert [demand.refused("a") for _ in range(3)] == [1, 2, 3]
    assert demand.refused("b") == 2, "callers"
    now[0] += 2 * demand.window_s
    assert demand.refused("b") == 1
    for _ in range(10_000):
        demand.refused("a")
    assert len(demand._refusals) <= 4096
