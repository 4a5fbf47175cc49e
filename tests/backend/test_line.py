"""The line for places in the batch."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from inference_service.line import Line, Place


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Asking:
    """Requests in the line, and the order in which they got places."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.order: list[str] = []
        self.places: list[Place] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def ask(self, *callers: str, size: int = 1, priority: int = 0, note: str = "") -> None:
        self.tasks += [
            asyncio.create_task(self._ask(caller, size, priority, note)) for caller in callers
        ]
        await settle()

    async def _ask(self, caller: str, size: int, priority: int, note: str) -> None:
        place = await self.line.enter(caller, size, priority)
        self.order.append(caller + note)
        self.places.append(place)

    async def leave(self, index: int = 0) -> None:
        self.places.pop(index).leave()
        await settle()

    async def finish(self) -> None:
        while self.places:
            await self.leave()
        async with asyncio.timeout(2):  # a place that nobody gives back must not hang the tests
            await asyncio.gather(*self.tasks)


async def test_one_caller_alone_has_all_places() -> None:
    asking = Asking(Line(8))
    await asking.ask(*"aaaaaaaaaa")
    assert len(asking.order) == 8
    assert asking.line.waiting == 2
    await asking.finish()
    assert asking.line.waiting == 0


async def test_a_place_is_free_when_its_holder_leaves() -> None:
    line = Line(1)
    for caller in ("a", "b", "a"):
        async with asyncio.timeout(1):
            place = await line.enter(caller, 1)
        place.leave()
        place.leave()


async def test_a_spare_place_is_free_for_the_next_caller() -> None:
    asking = Asking(Line(8, spare=2))
    await asking.ask(*"aaaaaaaa")
    assert asking.order == [*"aaaaaa"]
    await asking.ask("b")
    assert asking.order[-1] == "b"
    await asking.finish()


async def test_spare_places_are_for_those_who_have_none() -> None:
    asking = Asking(Line(8, spare=2))
    await asking.ask(*"aaaaaaaaa")
    await asking.ask("b", "b", "c", "d")
    assert asking.order == [*"aaaaaa", "b", "c"]
    await asking.leave()
    assert asking.order[8:] == ["d"]
    await asking.finish()


async def test_a_large_request_that_waits_does_not_keep_those_out_who_have_none() -> None:
    asking = Asking(Line(8, spare=2))
    await asking.ask("a")
    await asking.ask("b", size=5)
    await asking.ask("a", size=3)
    await asking.ask("c", size=2)
    assert asking.order == ["a", "b", "c"]
    await asking.finish()


async def test_callers_who_have_none_overtake_a_large_request_that_waits_within_spare_places() -> (
    None
):
    asking = Asking(Line(16, spare=4))
    await asking.ask("a", size=6)
    await asking.ask("large", size=12)
    await asking.ask("large two", size=5)
    await asking.ask("b", size=2)
    await asking.ask("c", "a")
    await asking.ask("d", size=2)
    assert asking.order == ["a", "b", "c"], "what they have together is at most spare"
    await asking.leave(2)
    assert asking.order[3:] == ["d"]
    await asking.leave()
    assert asking.order[4:] == ["large"], "they are not in its way"
    await asking.finish()
    assert asking.line.held == 0


async def test_callers_go_on_in_spare_places_that_a_large_request_does_not_need() -> None:
    """Though it would have its places if these were left empty: answers in them may be long."""
    asking = Asking(Line(16, spare=4))
    await asking.ask("a", size=4)
    await asking.ask("a", size=2)
    await asking.ask("large", size=12)
    await asking.ask("b", size=3)
    await asking.leave()
    assert asking.order == ["a", "a", "b"]
    await asking.ask("c")
    assert asking.order[3:] == ["c"]
    await asking.leave()
    assert asking.order[4:] == ["large"]
    await asking.finish()


async def test_nobody_overtakes_a_request_for_all_places_when_only_such_are_in_its_way() -> None:
    asking = Asking(Line(16, spare=4))
    await asking.ask("a", size=6)
    await asking.ask("large", size=16)
    await asking.ask("b")
    assert asking.order == ["a", "b"]
    await asking.leave()
    await asking.ask("c")
    assert asking.order == ["a", "b"]
    await asking.leave()
    assert asking.order == ["a", "b", "large"]
    await asking.finish()
    assert asking.order == ["a", "b", "large", "c"]


@pytest.mark.parametrize("size", [3, 9, 12, 13, 16, 40])
@pytest.mark.parametrize("spare", [0, 1, 4])
@pytest.mark.parametrize("stay", [1, 3, 7])
async def test_a_request_of_any_size_gets_its_places_among_small_ones_without_end(
    size: int, spare: int, stay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New callers come in every step, and stay for some; one that was there before stays longer."""
    now = 100.0
    monkeypatch.setattr("inference_service.line.time", SimpleNamespace(monotonic=lambda: now))
    line = Line(16, spare=spare)
    first = line.ask("first", 6)
    small: list[tuple[int, Place]] = []
    large: Place | None = None
    went_on = 0
    for step in range(200):
        now += 0.1
        small += [(step, line.ask(f"{step} {number}", 1 + number)) for number in range(2)]
        if step == 20:
            large = line.ask("large", size)
        if step == 60:
            first.leave()
        small = [(max(since, step) if not p.granted.done() else since, p) for since, p in small]
        for since, place in list(small):
            if place.granted.done() and step - since >= stay:
                went_on += 20 + 2 * stay < step < 60
                place.leave()
                small.remove((since, place))
        assert line.held <= line.places
        assert line._overtaking <= spare
        if large is not None and large.granted.done():
            break
    assert large is not None
    assert large.granted.done()
    assert step <= 60 + 2 * stay + 2
    assert went_on or step < 60 or not spare, "others go on meanwhile"


async def test_places_that_are_not_needed_are_given_back() -> None:
    line = Line(8)
    place = await line.enter("a", 8)
    waiting = asyncio.create_task(line.enter("b", 3))
    await settle()
    assert not waiting.done()
    place.shrink(5)
    place.shrink(7)
    await settle()
    assert waiting.done()
    for each in (place, waiting.result()):
        each.leave()
        each.leave()
    async with asyncio.timeout(1):
        await line.enter("c", 8)


async def test_callers_take_turns_however_many_requests_one_has() -> None:
    asking = Asking(Line(1))
    await asking.ask("greedy", "greedy", "greedy", "greedy", "b", "c")
    for _ in range(5):
        await asking.leave()
    assert asking.order == ["greedy", "b", "c", "greedy", "greedy", "greedy"]
    await asking.finish()


async def test_a_caller_with_more_places_waits_for_those_with_fewer() -> None:
    asking = Asking(Line(4))
    await asking.ask(*"aaaa")
    await asking.ask(*"aabb")
    await asking.leave()
    await asking.leave()
    assert asking.order[4:] == ["b", "b"]
    await asking.finish()


async def test_others_leave_room_for_the_next_request_of_a_caller_who_was_here_lately() -> None:
    asking = Asking(Line(8))
    await asking.ask("b")
    await asking.leave()
    await asking.ask(*"aaaaaaaa")
    assert asking.order == ["b", *"aaaa"]
    await asking.ask("b")
    assert asking.order[-1] == "b"  # at once
    await asking.finish()


async def test_room_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_service.line._LATELY_S", 0.0)
    asking = Asking(Line(8))
    await asking.ask("b")
    await asking.leave()
    await asking.ask(*"aaaaaaaa")
    assert asking.order == ["b", *"aaaaaaaa"]
    await asking.finish()


async def test_no_place_is_kept_where_they_are_held_for_moments() -> None:
    asking = Asking(Line(2, lately_s=0.0))
    await asking.ask("b")
    await asking.leave()
    await asking.ask(*"aab")
    assert asking.order == ["b", *"aa"]
    await asking.leave()
    assert asking.order[-1] == "b"
    await asking.finish()


async def test_shares_grow_when_a_caller_is_gone_though_nothing_else_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inference_service.line._LATELY_S", 0.2)
    asking = Asking(Line(8))
    await asking.ask("b")
    await asking.leave()
    await asking.ask(*"aaaaaaaa")
    assert asking.order == ["b", *"aaaa"]
    async with asyncio.timeout(20):
        await asyncio.gather(*asking.tasks)
    assert asking.order[5:] == [*"aaaa"]
    await asking.finish()


async def test_a_large_request_comes_before_those_who_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though it had a turn lately, and they had none yet."""
    now = 100.0
    monkeypatch.setattr("inference_service.line.time", SimpleNamespace(monotonic=lambda: now))
    asking = Asking(Line(4))
    await asking.ask("large")
    await asking.leave()
    await asking.ask("a")
    now += 2.0
    await asking.ask("large", size=4)
    for number in range(5):
        now += 3.0
        await asking.ask(f"new {number}", size=2)
        if number % 2:
            await asking.leave()
    await asking.leave()
    assert asking.order == ["large", "a", "new 0", "new 1", "large"]
    await asking.finish()


async def test_a_large_request_is_not_overtaken_for_ever() -> None:
    asking = Asking(Line(4))
    await asking.ask(*"aaa")
    await asking.ask("b", size=4)
    await asking.ask("c")
    assert asking.order == [*"aaa"]
    for _ in range(3):
        await asking.leave()
    assert asking.order[3:] == ["b"]
    await asking.finish()


async def test_a_request_larger_than_the_batch_takes_all_of_it() -> None:
    asking = Asking(Line(2))
    await asking.ask("a", size=5)
    await asking.ask("b")
    assert asking.order == ["a"]
    await asking.leave()
    assert asking.order == ["a", "b"]
    await asking.finish()


@pytest.mark.parametrize("granted", [False, True])
async def test_who_leaves_the_line_takes_nothing_along(granted: bool) -> None:
    line = Line(1)
    first = await line.enter("a", 1)
    waiting = asyncio.create_task(line.enter("b", 1))
    await settle()
    if granted:
        first.leave()  # the place is given, and the task has not yet learnt of it
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.leave()
    first.leave()
    async with asyncio.timeout(5):
        await line.enter("c", 1)


async def test_urgent_requests_of_a_caller_come_before_its_own_others() -> None:
    asking = Asking(Line(1))
    await asking.ask("a")
    for priority in (5, 0, -5, 0):
        await asking.ask("a", priority=priority, note=f" {priority}")
    await asking.finish()
    assert asking.order == ["a", "a -5", "a 0", "a 0", "a 5"]


async def test_priorities_do_not_change_the_turns_of_callers() -> None:
    asking = Asking(Line(1))
    await asking.ask("urgent", "urgent", "urgent", priority=-1000)
    await asking.ask("b", "c", priority=1000)
    await asking.finish()
    assert asking.order == ["urgent", "b", "c", "urgent", "urgent"]


async def test_the_least_urgent_request_is_not_overtaken_for_ever() -> None:
    asking = Asking(Line(1))
    await asking.ask("a")
    await asking.ask("a", "a", priority=9, note=" late")
    for _ in range(12):
        await asking.ask("a", priority=0, note="!")
        await asking.leave()
    late = [turn for turn, who in enumerate(asking.order) if who == "a late"]
    assert late == [4, 8]
    await asking.finish()


async def test_a_large_request_that_is_not_urgent_gets_its_places() -> None:
    asking = Asking(Line(4))
    await asking.ask(*"aaaa")
    await asking.ask("a", size=4, priority=9, note=" large")
    for _ in range(20):
        await asking.ask("a", note="!")
        if asking.places:
            await asking.leave()
    await asking.finish()
    assert asking.order.index("a large") < 14
    assert len(asking.order) == 25


@pytest.mark.parametrize("fewer", [1, 50, 99])
async def test_a_line_that_became_shorter_grants_what_was_asked_of_the_longer_one(
    fewer: int,
) -> None:
    line = Line(100)
    asking = Asking(line)
    await asking.ask("a", size=100)
    await asking.ask("b", size=100)
    await asking.ask("b")
    line.places = fewer
    await asking.leave()
    assert (asking.order, line.held) == (["a", "b"], fewer)
    assert asking.places[0].size == fewer
    await asking.finish()
    assert (line.held, line.waiting) == (0, 0)


async def test_a_line_that_became_longer_grants_what_was_asked() -> None:
    line = Line(1)
    asking = Asking(line)
    await asking.ask("a", "b", size=60)
    line.places = 100
    await asking.leave()
    assert (asking.order, line.held) == (["a", "b"], 60)
    await asking.finish()
    assert line.held == 0


async def test_what_waits_is_told_by_callers() -> None:
    line = Line(10)
    asking = Asking(line)
    await asking.ask("a", size=10)
    await asking.ask("b", "b", size=4)
    await asking.ask("c", size=40)
    assert (line.waiting, line.waiting_callers) == (3, 2)
    assert [line.waiting_size(caller) for caller in "abc"] == [0, 8, 10]
    await asking.finish()
    assert line.waiting_callers == 0


async def test_a_place_can_be_asked_for_without_waiting() -> None:
    line = Line(10)
    first, second, third = line.ask("a", 10), line.ask("a", 8), line.ask("b", 5)
    assert [place.granted.done() for place in (first, second, third)] == [True, False, False]
    second.leave()
    second.leave()
    assert line.waiting == 1
    first.leave()
    assert third.granted.done()
    third.leave()
    assert (line.held, line.waiting) == (0, 0)
