"""The room for request messages."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from inference_service.errors import QueueFullError
from inference_service.grpc_api.fair_room import Line
from inference_service.grpc_api.message_budget import MessageBudget, MessageClaim, Patience


def budget(messages: int = 2, **changes: float) -> MessageBudget:
    values = {"max_waiting": 10, "wait_s": 5.0, "patience_s": 0.05} | changes
    one_s = values["patience_s"]
    return MessageBudget(
        100 * messages,
        Line(max_waiting=int(values["max_waiting"]), wait_s=values["wait_s"]),
        Patience(one_s=one_s, alone_s=values.get("patience_alone_s", one_s)),
        max_message_bytes=100,
        setting="--the-setting",
    )


async def never() -> bytes:
    await asyncio.Event().wait()
    return b""


async def of(size: int) -> bytes:
    return bytes(size)


async def begin(
    room: MessageBudget, caller: str
) -> tuple[MessageClaim, asyncio.Task[bytes | None]]:
    """A message that never ends."""
    claim = await room.reserve(caller)
    task = asyncio.create_task(room.receive(claim, never, 10))
    await asyncio.sleep(0)
    return claim, task


async def test_a_complete_message_counts_its_size() -> None:
    room = budget()
    claims = []
    for _ in range(10):
        claim = await room.reserve("a")
        assert await room.receive(claim, lambda: of(10), 1) == bytes(10)
        claims.append(claim)
    assert room.used_bytes == 100
    for claim in [*claims, *claims]:
        room.release(claim)
    assert room.used_bytes == 0


async def test_a_message_waits_for_room_and_never_exceeds_it() -> None:
    room = budget(patience_s=60)
    first = await room.reserve("a")
    await room.reserve("a")
    waiting = asyncio.ensure_future(room.reserve("b"))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert room.used_bytes == 200
    room.release(first)
    async with asyncio.timeout(5):
        await waiting
    assert room.used_bytes == 200


async def test_a_slow_message_of_the_caller_with_the_most_makes_room() -> None:
    room = budget(3)
    _, honest = await begin(room, "honest")
    oldest, cut = await begin(room, "greedy")
    _, other = await begin(room, "greedy")
    waiting = asyncio.ensure_future(room.reserve("new"))
    with pytest.raises(QueueFullError, match="--the-setting"):
        async with asyncio.timeout(2):
            await cut
    room.release(oldest)
    async with asyncio.timeout(5):
        await waiting
    assert not honest.done()
    assert not other.done()
    for task in (honest, other):
        task.cancel()


async def test_a_caller_at_its_own_limit_cuts_nobody() -> None:
    """Others' messages are no hindrance to one that waits for its caller's."""
    room = budget(10)
    _, slow = await begin(room, "slow")
    mine = [await begin(room, "busy") for _ in range(5)]
    waiting = asyncio.ensure_future(room.reserve("busy"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    assert not slow.done()
    room.release(mine[0][0])
    async with asyncio.timeout(5):
        await waiting
    for task in (slow, *(task for _, task in mine)):
        task.cancel()


async def test_room_goes_to_the_caller_that_has_least() -> None:
    room = budget(2, patience_s=60)
    greedy = [await room.reserve("greedy") for _ in range(2)]
    order: list[str] = []

    async def wait(caller: str) -> None:
        await room.reserve(caller)
        order.append(caller)

    tasks = [asyncio.create_task(wait(caller)) for caller in ("greedy", "small")]
    await asyncio.sleep(0)
    for claim in greedy:
        room.release(claim)
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert order == ["small", "greedy"]


async def test_the_line_is_bounded_in_number_and_time() -> None:
    room = budget(1, max_waiting=1, wait_s=0.1, patience_s=60)
    await room.reserve("a")
    waiting = asyncio.ensure_future(room.reserve("a"))
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as caught:
        await room.reserve("a")
    assert caught.value.retry_after_s
    with pytest.raises(QueueFullError):
        await waiting


@pytest.mark.parametrize("granted", [False, True])
async def test_who_leaves_takes_no_room_along(granted: bool) -> None:
    room = budget(1, patience_s=60)
    first = await room.reserve("a")
    waiting = asyncio.ensure_future(room.reserve("b"))
    await asyncio.sleep(0.01)
    if granted:
        room.release(first)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    room.release(first)
    assert room.used_bytes == 0


async def test_a_message_that_takes_too_long_ends_without_a_cut() -> None:
    room = budget()
    claim = await room.reserve("a")
    with pytest.raises(TimeoutError):
        await room.receive(claim, never, 0.02)


async def test_one_caller_receives_part_of_the_messages_at_once() -> None:
    """Messages that are complete at the same time are copied one after the other, on the loop."""
    room = budget(16, patience_s=60)
    claims = [await room.reserve("a") for _ in range(8)]
    waiting = asyncio.ensure_future(room.reserve("a"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    async with asyncio.timeout(1):
        await room.reserve("b")
        assert await room.receive(claims[0], lambda: of(10), 1) == bytes(10)
        await waiting


async def test_many_messages_of_one_caller_all_end() -> None:
    room = budget(12, max_waiting=256, patience_s=60)
    receiving: list[int] = []
    most = 0

    async def slowly() -> bytes:
        nonlocal most
        receiving.append(1)
        most = max(most, len(receiving))
        await asyncio.sleep(0.01)
        receiving.pop()
        return bytes(90)

    async def one() -> None:
        claim = await room.reserve("a")
        await room.receive(claim, slowly, 5)
        await asyncio.sleep(0.01)
        room.release(claim)

    async with asyncio.timeout(5):
        await asyncio.gather(*(one() for _ in range(48)))
    assert most == 6
    assert room.used_bytes == 0


async def test_slow_messages_of_one_caller_wait_for_each_other() -> None:
    """As long as the call may, as they are refused for lack of room and there is room."""
    room = budget(16, patience_s=60, wait_s=0.1)
    claims = [await room.reserve("a") for _ in range(8)]
    waiting = asyncio.ensure_future(room.reserve("a"))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    others = [await room.reserve(name) for name in "bcdefghi"]
    with pytest.raises(QueueFullError):
        await waiting
    waiting = asyncio.ensure_future(room.reserve("a"))
    await asyncio.sleep(0.01)
    room.release(others[0])
    room.release(claims[0])
    async with asyncio.timeout(1):
        await waiting


async def test_the_only_message_of_a_caller_may_take_longer() -> None:
    room = budget(2, patience_s=0.05, patience_alone_s=60, wait_s=0.5)
    tasks = [(await begin(room, caller))[1] for caller in "ab"]
    with pytest.raises(QueueFullError):
        await room.reserve("c")
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()


async def test_a_caller_that_fills_the_line_keeps_no_other_out_of_it() -> None:
    room = budget(1, max_waiting=4, patience_s=60)
    held = await room.reserve("greedy")
    waits = [asyncio.create_task(room.reserve("greedy")) for _ in range(4)]
    await asyncio.sleep(0)
    others = [asyncio.create_task(room.reserve(name)) for name in ("b", "c", "b")]
    await asyncio.sleep(0.02)
    assert [task.done() for task in waits] == [False, False, True, True], "the newest ones"
    assert [task.done() for task in others] == [False, False, True], "as many as the greedy one"
    for task in (*waits[2:], others[2]):
        with pytest.raises(QueueFullError):
            await task
    room.release(held)
    async with asyncio.timeout(5):
        for task in (*waits[:2], *others[:2]):
            room.release(await task)
    assert room.used_bytes == 0


@pytest.mark.parametrize("held", ["whole messages", "beginnings"])
async def test_others_pass_whatever_one_caller_begins(held: str) -> None:
    """Each pass begins more messages than the line holds, as a caller that never stops does."""
    room = budget(8, max_waiting=16, patience_s=0.02)
    flood: set[asyncio.Task[None]] = set()

    async def greedy() -> None:
        with contextlib.suppress(QueueFullError, TimeoutError):
            claim = await room.reserve("greedy")
            try:
                read = never if held == "beginnings" else lambda: of(97)
                await room.receive(claim, read, 600)
                await asyncio.Event().wait()  # its request waits for a slow address
            finally:
                room.release(claim)

    for _ in range(20):
        flood |= {asyncio.create_task(greedy()) for _ in range(25)}
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            claim = await room.reserve("honest")
            assert await room.receive(claim, lambda: of(10), 5) == bytes(10)
            room.release(claim)
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    assert room.used_bytes == 0


async def test_one_caller_holds_no_more_than_part_of_the_room() -> None:
    room = budget(8, patience_s=60)
    claims = []
    for _ in range(6):
        claims.append(await room.reserve("a"))
        await room.receive(claims[-1], lambda: of(100), 1)
    waiting = asyncio.ensure_future(room.reserve("a"))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    async with asyncio.timeout(1):
        await room.reserve("b")
        room.release(claims[0])
        await waiting
