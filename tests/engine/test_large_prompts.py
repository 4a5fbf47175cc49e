"""A prompt as large as the cache gets in, and nobody else waits for that while pages are idle: simulated loads."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.engine import batch
from inference_service.engine.sequence import Sequence
from inference_service.engine.shares import _PATIENCE_S, overtakes
from tests.support.engine_load import PAGE_TOKENS, STEP_S, Load, request


PAGES = 250
WINDOW = PAGES * PAGE_TOKENS
BUDGET = 256
PATIENCE = round(_PATIENCE_S / STEP_S) + 1
PREFILL = WINDOW // BUDGET + 1
LARGE = WINDOW - 40


def make(*, pages: int = PAGES, seqs: int = 64) -> Load:
    return Load(budget=BUDGET, pages=pages, max_model_len=WINDOW, seqs=seqs)


def tail(load: Load, sequence: Sequence, limit: int) -> int:
    """Steps until a sequence has ended."""
    for count in range(limit):
        if sequence.finish_reason is not None:
            return count
        load.step()
    return limit


@pytest.mark.parametrize("caller", ["", "honest"], ids=["newcomers", "the caller of the answer"])
def test_small_prompts_go_on_while_a_large_one_cannot_have_its_room(caller: str) -> None:
    """One honest long answer has some of the pages; the rest is idle."""
    load = make()
    honest = load.add(request("honest", 40, answer=400))
    load.step()
    large = load.add(request("large", LARGE, answer=5))
    count = 0
    while honest.finish_reason is None:
        small = load.add(request(caller or f"newcomer {count}", 40, answer=10))
        assert load.steps_until_first_token(small, 10) <= 3
        for _ in range(10):
            load.step()
        count += 1
    assert count > 20
    assert honest.epoch == 1, "it has left once, at its end"
    assert load.steps_until_first_token(large, 3 * PREFILL) <= PREFILL + 3


def test_a_large_prompt_comes_before_those_that_have_overtaken_it() -> None:
    load = make()
    honest = load.add(request("honest", 40, answer=2 * PATIENCE))
    load.step()
    large = load.add(request("large", LARGE, answer=5))
    for _ in range(PATIENCE):
        load.step()
    guests = [load.add(request(f"{number}", 40, answer=500)) for number in range(3)]
    while honest.finish_reason is None:
        load.step()
    assert all(guest.num_answer_tokens > 10 for guest in guests)
    assert load.steps_until_first_token(large, 3 * PREFILL) <= PREFILL + 3
    for _ in range(600):
        load.step()
    assert {len(guest) for guest in guests} == {540}, "what they had is kept"


def test_what_has_overtaken_a_prompt_gives_way_when_answers_grow() -> None:
    """The large one is the last one that is admitted, and yet not the first one that leaves."""
    load = make()
    honest = load.add(request("honest", 40, answer=PATIENCE + 20))
    load.step()
    large = load.add(request("large", WINDOW - 32, answer=30))
    while honest.num_answer_tokens < PATIENCE + 15:
        load.step()
    guest = load.add(request("guest", 10, answer=500))
    while large.finish_reason is None:
        load.step()
    assert large.epoch == 1, "it has left once, at its end"
    assert guest.epoch == 1, "for the pages of the large one"


def test_a_late_prompt_that_is_preempted_is_late_at_once() -> None:
    """Those that it makes leave would come before it again and again, until it has waited as long once more."""
    load = make()
    first = load.add(request("first", 200, answer=PATIENCE + 20))
    second = load.add(request("second", 40, answer=PATIENCE + 45))
    load.step()
    pages_of_second = -(-(len(second) + PATIENCE + 20) // PAGE_TOKENS)
    large = load.add(request("large", (PAGES - pages_of_second) * PAGE_TOKENS, answer=30))
    while first.finish_reason is None:
        load.step()
    for number in range(2):
        load.keep(1, lambda number=number: request(f"new {number}", 100, answer=40))  # type: ignore[misc]
    while second.finish_reason is None:
        load.step()
    assert large.epoch == 1, "the second one has grown"
    before = load.scheduler.counters.preemptions
    assert tail(load, large, PATIENCE) <= PREFILL + 33
    assert load.scheduler.counters.preemptions - before <= 2


@pytest.mark.parametrize("callers", [1, 3])
def test_large_prompts_without_end_stop_no_answer(callers: int) -> None:
    load = make()
    for number in range(callers):
        load.keep(2, lambda number=number: request(f"large {number}", LARGE, answer=5))  # type: ignore[misc]
    for _ in range(3 * PATIENCE):
        load.step()
    honest = load.add(request("honest", 40, answer=200))
    count = 0
    while honest.finish_reason is None and count < 4000:
        load.step()
        count += 1
    assert count < 200 + (callers + 2) * (PREFILL + 10) + PATIENCE
    assert honest.epoch <= 3


def test_a_prompt_without_room_lets_others_have_further_sequences() -> None:
    """It is of a caller with an answer in progress, and so not late."""
    load = make()
    load.add(request("attacker", 40, answer=2000))
    load.add(request("attacker", LARGE))
    load.add(
        request("honest", 100, answer=2000)
    )  # who has had more, and so comes after the other one
    load.step()
    second = load.add(request("honest", 40, answer=10))
    assert load.steps_until_first_token(second, 10) <= 3


def test_slots_go_to_those_who_have_waited_too_long() -> None:
    load = make(seqs=3)
    for number in range(3):
        load.add(request(f"old {number}", 20, answer=(number + 1) * 2 * PATIENCE))
    load.step()
    late = load.add(request("late", 20, answer=5))
    for number in range(9):
        load.add(request(f"new {number}", 20, answer=1000))
    assert load.steps_until_first_token(late, 5 * PATIENCE) <= 2 * PATIENCE + 3


def test_a_late_sequence_that_is_cached_goes_on_at_once() -> None:
    """All but its newest token: it is an answer in progress as soon as it is admitted."""
    load = make()
    one = load.add(request("a", PAGE_TOKENS, answer=9))
    load.step()
    load.scheduler._batch.preempt(one)
    load.now_s += _PATIENCE_S + 1
    [chunk] = load.scheduler.schedule().chunks
    assert (chunk.sequence, chunk.start, chunk.end) == (one, PAGE_TOKENS, PAGE_TOKENS + 1)


class Counted(list[int]):
    """Pages that count how often one of them is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[int]:
        for page in super().__iter__():
            type(self).looks += 1
            yield page


@pytest.mark.parametrize("slots", [40, 32], ids=["no pages", "no slots"])
def test_a_plan_looks_at_little_for_those_that_are_late(
    slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot have their room beside the oldest sequence of each caller, and each of them is looked at."""
    running, late = 32, 16
    load = make(pages=10 * running + PAGES // 2, seqs=slots)
    for number in range(running):
        load.add(request(f"old {number}", 9 * PAGE_TOKENS, answer=2000))
    while sum(one.is_decoding for one in load.scheduler.running) < running:
        load.step()
    for number in range(late):
        load.add(request(f"late {number}", LARGE))
    load.now_s += _PATIENCE_S + 1
    load.step()
    for one in load.scheduler.running:
        one.pages = Counted(one.pages)
    monkeypatch.setattr(Counted, "looks", 0)
    compare = Mock(wraps=overtakes)
    monkeypatch.setattr(batch, "overtakes", compare)
    load.scheduler.schedule()
    assert (len(load.scheduler.running), len(load.scheduler.waiting)) == (running, late)
    assert all(one.late_since is not None for one in load.scheduler.waiting)
    assert Counted.looks == 0
    assert compare.call_count <= 2 * running * late


sizes = st.sampled_from([10, 100, 800, 2000, LARGE]) | st.integers(1, LARGE)
others = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 3), sizes, st.sampled_from([1, 5, 30])),
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(others, st.sampled_from(["a", "e"]), sizes, st.integers(1, 12))
def test_every_request_ends(
    streams: list[tuple[str, int, int, int]], caller: str, size: int, seqs: int
) -> None:
    """Whoever is in flight when it comes may be computed first, and be late before it."""
    load = make(seqs=seqs)
    for who, count, length, answer in streams:
        load.keep(count, lambda w=who, n=length, a=answer: request(w, n, answer=a))  # type: ignore[misc]
    for _ in range(20):
        load.step()
    one = load.add(request(caller, size, answer=30))
    before = 2 + sum(count for _, count, _, _ in streams)
    bound = 4 * before * (PATIENCE + PREFILL + 60)
    assert tail(load, one, bound) < bound


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("callers", [1, 3])
@pytest.mark.parametrize("length", [BUDGET, 3 * BUDGET])
def test_prompts_as_large_as_a_step_without_end_stop_no_prompt(
    callers: int, in_flight: int, length: int
) -> None:
    """Of each of their callers nothing runs whenever one of them has ended."""
    load = make(pages=4 * PAGES)
    for number in range(callers):
        load.keep(in_flight, lambda number=number: request(f"{number}", length))  # type: ignore[misc]
    load.step()
    large = load.add(request("large", 10 * BUDGET))
    assert load.steps_until_first_token(large, 400) <= 20 * (callers + 1)
