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
    """An answer of so many bytes counts twice as many, and 10 bytes of each caller always pass."""
    monkeypatch.setattr(answer_budget, "_CALL_BYTES", 0)
    monkeypatch.setattr(answer_budget, "_ALWAYS_BYTES", 10)


def budget(answers: int = 4, **changes: Any) -> AnswerBudget:
    values: dict[str, Any] = {"max_waiting": 10, "wait_s": 5.0, "patience_s": 60.0}
    values |= {"patience_alone_s": values["patience_s"]} | changes
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


async def test_a_slow_answer_of_the_caller_with_the_most_makes_room() -> None:
    room = budget(patience_s=0.02, patience_alone_s=0.02)
    sending: dict[str, list[asyncio.Task[Any]]] = {"a": [], "b": []}
    for caller, size in (("a", 90), ("b", 100), ("a", 90), ("b", 90)):
        claim = await room.reserve(caller, size)
        send = room.send(claim, bytes(size), Reader().write, 60)
        sending[caller].append(asyncio.create_task(send))
    waiting = asyncio.create_task(room.reserve("c", 100))
    async with asyncio.timeout(5):
        assert await sending["b"][0] is not None, "the largest of the one with the most"
    assert not waiting.done(), "until gRPC has let go of it"
    for task in (waiting, *sending["a"], *sending["b"]):
        task.cancel()


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
    room, reader = budget(max_waiting=256), Reader()
    for _ in range(2):
        await unread(room, "a", reader)
    waits = [asyncio.create_task(room.reserve("a", 100, is_made=True)) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in waits)
    with pytest.raises(QueueFullError, match=r"answer.*800 bytes of unsent answers.*--the-one"):
        await room.reserve("a", 100, is_made=True)
    reader.reads.set()
    async with asyncio.timeout(5):
        for task in waits:
            room.release(await task)
