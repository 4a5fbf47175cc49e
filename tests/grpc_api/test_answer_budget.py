"""The room for answers that are not sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from inference_service.errors import QueueFullError
from inference_service.grpc_api import answer_budget
from inference_service.grpc_api.answer_budget import AnswerBudget
from inference_service.grpc_api.fair_room import Claim, Line


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte is tiny, and 10 bytes of each caller always pass."""
    monkeypatch.setattr(answer_budget, "_TINY_BYTES", 1)
    monkeypatch.setattr(answer_budget, "_ALWAYS_BYTES", 10)


def budget(answers: int = 4, **changes: Any) -> AnswerBudget:
    values: dict[str, Any] = {"max_waiting": 10, "wait_s": 5.0} | changes
    return AnswerBudget(200 * answers, Line(**values), max_message_bytes=100, setting="--the-one")


class Reader:
    """Takes answers when it is told to, as gRPC's writes end then."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.fails: Exception | None = None

    async def write(self, message: bytes) -> None:
        del message
        await self.reads.wait()
        if self.fails:
            raise self.fails


async def at_once(message: bytes) -> None:
    del message


Write = Callable[[bytes], Awaitable[None]]


async def unread(room: AnswerBudget, caller: str, reader: Reader) -> Claim:
    """An answer that is not read in time."""
    claim = await room.reserve(caller, 100)
    assert await room.send(claim, bytes(100), reader.write, 0.0) is not None
    return claim


async def test_an_answer_counts_until_it_is_sent() -> None:
    room, reader = budget(), Reader()
    claim = await room.reserve("a", 100)
    assert room.used_bytes == 200
    sending = asyncio.create_task(room.send(claim, bytes(30), reader.write, 60))
    await asyncio.sleep(0.01)
    assert room.used_bytes == 60
    reader.reads.set()
    assert await sending is None
    assert room.used_bytes == 0


@pytest.mark.parametrize("fails", [None, OSError("gone")])
async def test_an_unread_answer_counts_until_its_call_is_gone(fails: Exception | None) -> None:
    room, reader = budget(), Reader()
    await unread(room, "a", reader)
    assert room.used_bytes == 200
    reader.fails = fails
    reader.reads.set()
    await asyncio.sleep(0.01)
    assert room.used_bytes == 0


async def test_a_call_that_is_cancelled_leaves_its_bytes_counted() -> None:
    room, reader = budget(), Reader()
    claim = await room.reserve("a", 100)
    sending = asyncio.create_task(room.send(claim, bytes(100), reader.write, 60))
    await asyncio.sleep(0.01)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert room.used_bytes == 200
    reader.reads.set()
    await asyncio.sleep(0.01)
    assert room.used_bytes == 0


async def test_a_failed_write_fails() -> None:
    room, reader = budget(), Reader()
    reader.fails = OSError("gone")
    reader.reads.set()
    with pytest.raises(OSError, match="gone"):
        await room.send(await room.reserve("a", 10), bytes(10), reader.write, 60)
    assert room.used_bytes == 0


async def test_unread_answers_of_one_caller_leave_room_to_others() -> None:
    room, reader = budget(), Reader()
    for _ in range(2):
        await unread(room, "greedy", reader)
    waiting = asyncio.create_task(room.reserve("greedy", 100))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    for _ in range(3):
        claim = await room.reserve("b", 100)
        assert await room.send(claim, bytes(100), at_once, 60) is None
    assert not waiting.done()
    reader.reads.set()
    async with asyncio.timeout(5):
        room.release(await waiting)
    assert room.used_bytes == 0


async def test_what_is_small_passes_when_there_is_no_room() -> None:
    room, reader = budget(), Reader()
    for caller in "aabb":
        await unread(room, caller, reader)
    assert room.used_bytes == room.limit_bytes
    claims = [await room.reserve("c", 2) for _ in range(2)]
    waiting = asyncio.create_task(room.reserve("c", 2))
    await asyncio.sleep(0.01)
    assert not waiting.done(), "more than always passes"
    room.release(claims[0])
    async with asyncio.timeout(5):
        await waiting


async def test_what_is_tiny_passes_whatever_its_caller_holds() -> None:
    """So the streams of one key go on while another client of the key reads nothing."""
    room, reader = budget(), Reader()
    for caller in "aabb":
        await unread(room, caller, reader)
    used = room.used_bytes
    for _ in range(1000):
        claim = room.try_reserve("a", 1)
        assert claim is not None
        sending = asyncio.create_task(room.send(claim, bytes(1), reader.write, 0.0))
    assert await sending is not None
    assert room.used_bytes == used
    reader.reads.set()
    await asyncio.sleep(0.01)
    assert room.used_bytes == 0


@pytest.mark.parametrize("num_bytes", [1, 100])
async def test_an_answer_larger_than_expected_counts_its_size(num_bytes: int) -> None:
    room, reader = budget(), Reader()
    claim = await room.reserve("a", 1)
    await room.send(claim, bytes(num_bytes), reader.write, 0.0)
    assert room.used_bytes == (200 if num_bytes == 100 else 0)
    reader.reads.set()
    await asyncio.sleep(0.01)
    assert room.used_bytes == 0


@pytest.mark.parametrize(("num_bytes", "looks"), [(1, 1), (3, 2 + 50)])
async def test_a_message_of_a_stream_costs_the_same_however_many_wait(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, looks: int
) -> None:
    """A tiny one looks at nothing but itself; a small one, when it ends, at the first wait of each other caller."""
    room, reader = budget(max_waiting=1000), Reader()
    for caller in "aabb":
        await unread(room, caller, reader)
    waits = [asyncio.create_task(room.reserve(str(n % 50), 100)) for n in range(1000)]
    await asyncio.sleep(0)
    looked: list[Claim] = []
    fits = room._fits

    def look(claim: Claim) -> bool:
        looked.append(claim)
        return fits(claim)

    monkeypatch.setattr(room, "_fits", look)
    monkeypatch.setattr(room, "_look_after", lambda: None)
    claim = room.try_reserve("stream", num_bytes)
    assert claim is not None
    assert await room.send(claim, bytes(num_bytes), at_once, 60) is None
    assert len(looked) <= looks
    for task in waits:
        task.cancel()


async def test_those_that_wait_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    room, reader = budget(max_waiting=1000, wait_s=60.0), Reader()
    looks = 0
    look_after = room._look_after

    def count() -> None:
        nonlocal looks
        looks += 1
        look_after()

    monkeypatch.setattr(room, "_look_after", count)
    for caller in "aabb":
        await unread(room, caller, reader)
    waits = [asyncio.create_task(room.reserve("c", 100)) for _ in range(500)]
    await asyncio.sleep(0)
    assert looks == 1
    timers = [one for one in asyncio.get_running_loop()._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
    assert len(timers) == 1
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert not room._waits


async def test_two_of_the_largest_of_one_caller_and_one_of_another_pass() -> None:
    for answers in (1, 3, 4, 8):
        room = budget(answers)
        claims = [room.try_reserve(caller, 100) for caller in "aab"]
        assert None not in claims
        assert room.limit_bytes == max(600, 200 * answers)
        assert (room.try_reserve("a", 100) is None) == (answers < 8)


async def test_answers_that_are_sent_slowly_are_not_cut_for_others() -> None:
    """What fills the room is unread answers of which nothing can be cut; cutting others would free nothing."""
    room, reader = budget(wait_s=0.1), Reader()
    for caller in "aabb":
        await unread(room, caller, reader)
    sending = []
    for number in range(20):
        claim = room.try_reserve(f"user {number}", 5)
        assert claim is not None
        sending.append(asyncio.create_task(room.send(claim, bytes(5), reader.write, 60)))
    with pytest.raises(QueueFullError):
        await room.reserve("c", 100)
    assert not any(task.done() for task in sending)
    reader.reads.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*sending) == [None] * 20


async def test_a_burst_of_the_largest_answers_is_made_one_after_the_other() -> None:
    room = budget(max_waiting=256, wait_s=0.01)
    most = 0

    async def one() -> None:
        nonlocal most
        claim = await room.reserve("adapter", 100)
        most = max(most, room.used_bytes)
        await asyncio.sleep(0.001)
        assert await room.send(claim, bytes(100), at_once, 60) is None

    async with asyncio.timeout(10):
        await asyncio.gather(*(one() for _ in range(64)))
    assert most == 400
    assert room.used_bytes == 0


async def test_answers_that_are_made_take_no_more_than_the_room_again_while_they_wait() -> None:
    """The newest ones of the caller with the most bytes give way, and nobody else's."""
    room, reader = budget(max_waiting=256), Reader()
    for caller in "aabb":
        await unread(room, caller, reader)

    def wait(caller: str, num_bytes: int, *, is_made: bool = True) -> asyncio.Task[Claim]:
        return asyncio.create_task(room.reserve(caller, num_bytes, is_made=is_made))

    small = [wait("modest", 6) for _ in range(8)]
    expected = [wait("a", 100, is_made=False) for _ in range(8)]
    large = [wait("a", 100) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in (*small, *expected, *large))
    more = [wait("modest", 40), wait("a", 100)]
    await asyncio.sleep(0.01)
    assert [task.done() for task in large] == [False, False, False]
    assert [task.done() for task in more] == [False, True]
    third = wait("c", 60)
    await asyncio.sleep(0.01)
    assert [task.done() for task in large] == [False, False, True], "the newest of the largest"
    assert not any(task.done() for task in (*small, *expected, third))
    for task in (more[1], large[2]):
        with pytest.raises(QueueFullError, match=r"answer.*800 bytes of unsent answers.*--the-one"):
            await task
    reader.reads.set()
    async with asyncio.timeout(5):
        for task in (*small, more[0], third):
            room.release(await task)
        for task in (*expected, *large[:2]):
            room.release(await task)
    assert room.used_bytes == 0
