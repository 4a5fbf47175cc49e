"""The turn of a request: what callers share, and what nobody holds while he waits for something slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
import random

import pytest

from inference_service.backend.admission import AdmittedRequest
from inference_service.backend.turn import Shared, Turn
from inference_service.errors import QueueFullError
from inference_service.line import Line
from inference_service.settings import ServiceSettings


CAPACITY = 800


def shared_by(*, batch: int = 1, preparing: int = 1, decoders: int = 1, pixels: int = 1) -> Shared:
    return Shared(
        batch=Line(batch),
        tokens=Line(1),
        preparing=Line(preparing),
        decoders=Line(decoders),
        pixels=Line(pixels),
    )


Reserve = Callable[..., asyncio.Task[None]]


@contextlib.asynccontextmanager
async def cache(*, full: bool) -> AsyncIterator[Reserve]:
    """A KV cache, empty or held by others; reserving tokens in it begins in the next turn of the loop."""
    shared = shared_by()
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


async def test_slow_images_keep_few_places_of_the_batch() -> None:
    """Requests whose images take long, or wait for the room of the pixels of another, do not fill the batch."""
    settings = ServiceSettings(media_workers=2, max_num_seqs=64, pixel_budget_mib=512)
    shared = Shared.from_settings(settings)
    slow = asyncio.Event()
    admitted = [AdmittedRequest(str(number), "greedy", "") for number in range(72)]

    async def decode(one: AdmittedRequest) -> None:
        with Turn(one, size=1, pixel_bytes=400 * 2**20, shared=shared) as turn:
            async with turn.decoding():
                await slow.wait()
            turn.decoded(10)

    greedy = [asyncio.create_task(decode(one)) for one in admitted]
    await settle()
    assert shared.batch.held == sum(one.begun for one in admitted) == 12
    assert shared.waiting == 60
    others = [
        Turn(AdmittedRequest(f"{number}", "modest", ""), size=1, pixel_bytes=0, shared=shared)
        for number in range(30)
    ]
    texts = [asyncio.create_task(turn.arrive()) for turn in others]
    await settle()
    assert all(task.done() for task in texts), "whoever sends no images finds the batch free"
    slow.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*greedy, *texts)
    for turn in others:
        turn.__exit__(None, None, None)
    assert_free(shared)


async def test_callers_who_leave_while_they_wait_give_everything_back() -> None:
    rng = random.Random(3)
    shared = shared_by(batch=6, preparing=4, decoders=2, pixels=100)

    async def one(number: int) -> None:
        admitted = AdmittedRequest(str(number), rng.choice("abc"), "", rng.randrange(3))
        images = rng.randrange(4)
        with Turn(admitted, size=rng.randint(1, 4), pixel_bytes=30 * images, shared=shared) as turn:

            async def decode() -> None:
                async with turn.decoding():
                    await asyncio.sleep(rng.random() / 500)

            await asyncio.gather(*(decode() for _ in range(images)))
            await turn.arrive()
            turn.decoded(images)
            await asyncio.sleep(rng.random() / 200)
            turn.free_pixels()

    tasks = [asyncio.create_task(one(number)) for number in range(200)]
    async with asyncio.timeout(60):
        for task in tasks:
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() / 300)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert_free(shared)


def assert_free(shared: Shared) -> None:
    lines = (shared.batch, shared.preparing, shared.decoders, shared.pixels)
    assert [(line.held, line.waiting) for line in lines] == [(0, 0)] * 4
