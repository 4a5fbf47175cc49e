"""The turn of a request: the KV cache that callers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib

import pytest

from inference_service.backend.admission import AdmittedRequest
from inference_service.backend.turn import Shared, Turn
from inference_service.errors import QueueFullError
from inference_service.line import Line


CAPACITY = 800

Reserve = Callable[..., asyncio.Task[None]]


@contextlib.asynccontextmanager
async def cache(*, full: bool) -> AsyncIterator[Reserve]:
    """A KV cache, empty or held by others; reserving tokens in it begins in the next turn of the loop."""
    shared = Shared(batch=Line(1), tokens=Line(1), decoders=Line(1), pixels=Line(1))
    shared.hold_tokens(CAPACITY)
    tasks: list[asyncio.Task[None]] = []
    if full:
        await shared.tokens.enter("others", CAPACITY + shared.tokens.spare)

    def reserve(caller: str, tokens: int) -> asyncio.Task[None]:
        admitted = AdmittedRequest(str(len(tasks)), caller, "")
        turn = Turn(admitted, size=1, pixel_bytes=0, shared=shared)
        tasks.append(asyncio.create_task(turn.reserve_tokens(tokens, 0)))
        return tasks[-1]

    try:
        yield reserve
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_waiting_prompts_of_one_caller_refuse_only_its_own_further_ones() -> None:
    async with cache(full=False) as reserve:
        waiting = [reserve("a", CAPACITY) for _ in range(18)]
        await settle()
        assert [task.done() for task in waiting] == [True, *17 * [False]]
        other = reserve("b", 10)
        await settle()
        assert other.done(), "it has the spare part"
        await other
        with pytest.raises(QueueFullError, match="of yours with 13600 tokens"):
            await reserve("a", 1)


async def test_many_callers_share_what_may_wait_and_the_first_of_each_always_may() -> None:
    async with cache(full=True) as reserve:
        for caller in "abcd":
            for _ in range(5):
                reserve(caller, CAPACITY)
        await settle()
        for caller in "abcd":  # a quarter of 16 caches each, and they have more
            with pytest.raises(QueueFullError):
                await reserve(caller, 1)
        first = reserve("e", CAPACITY)
        await settle()
        assert not first.done()
