"""The memory of all bodies: no caller has all of it, and what is not complete gives way."""

from __future__ import annotations

from collections import Counter
import contextlib

from hypothesis import given
from hypothesis import strategies as st
import pytest

from rest_adapter.body_budget import STALLED_S, BodyBudget, Holding
from rest_adapter.errors import ApiError


MIB = 2**20
LARGEST = 8 * MIB


class Room:
    """A budget of 32 MiB, 24 of them for large bodies, with a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0
        self.budget = BodyBudget(32 * MIB, LARGEST, lambda: self.now)
        self.cut: list[Holding] = []
        self.all: list[Holding] = []

    def hold(self, caller: str, count: int, *, complete: bool = False) -> Holding:
        holding = Holding(caller)
        self.budget.take(holding, count)
        self.all.append(holding)
        if not complete:
            holding.give_way = lambda: self.give_way(holding)
        return holding

    def give_way(self, holding: Holding) -> None:
        self.cut.append(holding)
        self.budget.give_back(holding)

    def check(self) -> None:
        held: Counter[str] = Counter()
        for each in self.all:
            held[each.caller] += each.num_bytes
        assert self.budget.used_bytes == held.total() <= 32 * MIB
        assert not held or max(held.values()) <= 24 * MIB


def refused(room: Room, caller: str, count: int, word: str = "") -> None:
    with pytest.raises(ApiError, match=f"{word}.*--body-budget-mib") as error:
        room.hold(caller, count)
    assert (error.value.status, error.value.reason) == (429, "QUEUE_FULL")
    assert error.value.retry_after_s


def test_one_caller_leaves_room_for_the_largest_body() -> None:
    room = Room()
    for _ in range(2):
        room.hold("a", LARGEST, complete=True)
    refused(room, "a", 2 * MIB, r"Your request bodies would have 2097152 bytes more .* for 8 MiB")
    for _ in range(8):
        room.hold("a", MIB, complete=True)  # the share of small ones
    refused(room, "a", MIB, "Your request bodies")
    room.hold("b", LARGEST, complete=True)
    refused(room, "c", 2 * MIB, "There is no room")
    refused(room, "c", MIB, "There is no room")


def test_one_caller_leaves_room_for_small_bodies() -> None:
    room = Room()
    for _ in range(24):
        room.hold("a", MIB)
    refused(room, "a", 1, "Your request bodies")
    for _ in range(8):
        room.hold("b", MIB)


def test_a_body_that_grows_becomes_a_large_one() -> None:
    room = Room()
    growing = room.hold("a", MIB)
    room.hold("a", 7 * MIB)
    room.hold("a", LARGEST)
    with pytest.raises(ApiError):
        room.budget.take(growing, MIB)
    assert growing.num_bytes == MIB


def test_a_body_without_bytes_gives_way_to_others_of_its_caller() -> None:
    room = Room()
    first = room.hold("a", LARGEST)
    room.now += STALLED_S / 2
    room.hold("a", LARGEST)
    refused(room, "a", LARGEST)
    room.now += STALLED_S / 2
    room.hold("a", LARGEST)
    assert room.cut == [first]
    refused(room, "a", LARGEST)


def test_nothing_is_cut_for_less_room_than_is_missing() -> None:
    room = Room()
    for _ in range(23):
        room.hold("a", MIB, complete=True)
    for _ in range(1000):
        room.hold("a", 1)
    room.now += STALLED_S
    refused(room, "a", MIB)
    assert not room.cut


def test_the_newest_body_of_the_caller_with_most_gives_way() -> None:
    room = Room()
    room.hold("a", 7 * MIB)
    newest = room.hold("a", 7 * MIB)
    room.hold("b", 6 * MIB)
    room.hold("b", 3 * MIB)
    refused(room, "b", 6 * MIB)  # it would have more than the other
    room.hold("c", 2 * MIB)
    assert room.cut == [newest]


def test_a_complete_body_does_not_give_way() -> None:
    room = Room()
    for _ in range(2):
        room.hold("a", LARGEST, complete=True)
    room.hold("b", LARGEST)
    refused(room, "c", LARGEST)  # "b" has no more than it
    assert not room.cut


def test_an_answer_has_room_that_bodies_cannot_take() -> None:
    room = Room()
    for caller in "abcd":
        for _ in range(8):
            room.hold(caller, MIB, complete=True)
    refused(room, "e", 1)
    first, second = room.all[0], room.all[8]
    room.budget.take_for_answer(first, LARGEST - 1)
    room.budget.take_for_answer(second, 1)
    with pytest.raises(ApiError, match=r"the answer.*--body-budget-mib"):
        room.budget.take_for_answer(second, 1)
    refused(room, "e", 1)
    room.budget.give_back(first)
    room.budget.give_back(first)
    room.hold("e", MIB)  # the body of the first
    room.budget.take_for_answer(second, LARGEST - 1)
    refused(room, "e", 1)


def test_answers_of_one_caller_leave_room_for_others() -> None:
    room = Room()
    mine = room.hold("a", MIB, complete=True)
    with contextlib.suppress(ApiError):
        while True:
            room.budget.take_for_answer(mine, MIB)
    room.hold("b", LARGEST, complete=True)


TAKES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, LARGEST), st.booleans(), st.floats(0, 3))
)


@given(TAKES)
def test_no_order_of_bodies_exceeds_the_bounds(takes: list[tuple[str, int, bool, float]]) -> None:
    room = Room()
    for caller, count, complete, pause in takes:
        room.now += pause
        with contextlib.suppress(ApiError):
            room.hold(caller, count, complete=complete)
        room.check()
    for each in room.all:
        room.budget.give_back(each)
        room.budget.give_back(each)
    assert room.budget.used_bytes == 0


@given(TAKES)
def test_whatever_one_caller_does_another_has_room(
    takes: list[tuple[str, int, bool, float]],
) -> None:
    room = Room()
    for _, count, complete, pause in takes:
        room.now += pause
        with contextlib.suppress(ApiError):
            room.hold("attacker", count, complete=complete)
    room.hold("other", LARGEST)
