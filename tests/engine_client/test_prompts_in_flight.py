"""Prompts that the engine prepares keep to the pixel budget and the quarantine, whatever becomes of their callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import os
import signal

import pytest

from inference_service.engine_client.child import EngineChild
from inference_service.engine_client.client import EngineClient
from inference_service.engine_client.interface import EngineState
from inference_service.engine_client.prompts import PromptsInFlight
from inference_service.engine_client.quarantine import Quarantine, fingerprint
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    EngineFailure,
    PromptLayout,
    PromptMedia,
    PromptSource,
)
from inference_service.errors import (
    ContextLengthError,
    EngineUnavailableError,
    ImageTooLargeError,
    InternalError,
)
from inference_service.line import Line
from tests.engine_client.engine_front import (
    BOUND_S,
    collect,
    fake_client,
    open_descriptors,
    request_of,
    tokens_of,
    until,
)
from tests.engine_client.fake_engine import ADD_RAISES, CRASH, LONG, PREPARE_S, REFUSED, STALL


@pytest.fixture
async def engine() -> AsyncIterator[EngineClient]:
    # What the event loop opens at its first use is not the client's.
    await asyncio.get_running_loop().run_in_executor(None, int)
    before = open_descriptors()
    client = fake_client()
    await client.start()
    yield client
    assert client.pixel_bytes_in_flight == 0
    await client.close()
    assert open_descriptors() == before


def source(*token_ids: int) -> PromptSource:
    return PromptSource(token_ids=token_ids)


async def crash(engine: EngineClient, *token_ids: int) -> None:
    with pytest.raises(EngineUnavailableError):
        await engine.prepare(source(*token_ids, CRASH), [])
    await until(lambda: engine.state is EngineState.READY)


async def test_many_at_once_keep_to_the_budget(engine: EngineClient) -> None:
    """Ten of 400 bytes: at most two of them are in the 1000 bytes at a time."""
    highest = 0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, engine.pixel_bytes_in_flight)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(BOUND_S):
        layouts = await asyncio.gather(
            *(engine.prepare(source(i), [bytes([i]) * 400]) for i in range(10))
        )
    watching.cancel()
    assert [layout.token_ids for layout in layouts] == [(i, 400 * i) for i in range(10)]
    assert 0 < highest <= 1000


async def test_more_than_the_whole_budget_is_refused(engine: EngineClient) -> None:
    with pytest.raises(ImageTooLargeError, match="--pixel-budget-mib"):
        await engine.prepare(source(1), [b"x" * 1001])


@pytest.mark.parametrize(
    ("marker", "error"), [(REFUSED, ContextLengthError), (ADD_RAISES, InternalError)]
)
async def test_a_refusal_is_an_answer(
    engine: EngineClient, marker: int, error: type[Exception]
) -> None:
    for _ in range(3):
        with pytest.raises(error):
            await engine.prepare(source(marker), [b"abc"])
    assert not engine.restarts


async def test_a_caller_that_leaves_frees_its_bytes_when_the_engine_is_done(
    engine: EngineClient,
) -> None:
    pixels = [b"x" * 600]
    leaving = asyncio.create_task(engine.prepare(source(LONG), pixels))
    await until(lambda: engine.pixel_bytes_in_flight == 600)
    waiting = asyncio.create_task(engine.prepare(source(1), pixels))
    gone = asyncio.create_task(engine.prepare(source(2), pixels))
    await asyncio.sleep(0.1)
    leaving.cancel()
    gone.cancel()
    await asyncio.sleep(0)
    assert engine.pixel_bytes_in_flight == 600, "the engine still has them"
    async with asyncio.timeout(BOUND_S):
        assert (await waiting).token_ids == (1, 600 * ord("x"))


async def test_the_next_room_is_for_a_caller_who_has_none(engine: EngineClient) -> None:
    pixels = [b"x" * 800]
    first = asyncio.create_task(engine.prepare(source(LONG), pixels, "a"))
    await until(lambda: engine.pixel_bytes_in_flight == 800)
    order: list[str] = []

    async def prepare(number: int, caller: str) -> None:
        await engine.prepare(source(number), pixels, caller)
        order.append(caller)

    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
        for number, caller in enumerate("aab"):
            group.create_task(prepare(number, caller))
    await first
    assert order == ["b", "a", "a"]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[wire.Command]:
    """What the client sends, from now on."""
    found: list[wire.Command] = []
    send = EngineChild.send

    def noting(self: EngineChild, command: wire.Command, pixel_fd: int | None = None) -> None:
        found.append(command)
        send(self, command, pixel_fd)

    monkeypatch.setattr(EngineChild, "send", noting)
    return found


def numbers(sent: list[wire.Command], kind: type[wire.Prepare | wire.Forget]) -> list[int]:
    return [command.number for command in sent if isinstance(command, kind)]


@pytest.mark.parametrize("pixels", [0, 3])
async def test_callers_take_turns_by_the_prompt(
    engine: EngineClient, sent: list[wire.Command], pixels: int
) -> None:
    """Small ones, too: the engine has no more than two, however many one caller sends."""
    images = [b"x" * pixels] if pixels else []
    first = asyncio.create_task(engine.prepare(source(LONG), images, "a"))
    await until(lambda: bool(sent))
    order: list[str] = []

    async def prepare(number: int, caller: str) -> None:
        await engine.prepare(source(number), images, caller)
        order.append(caller)
        assert len(numbers(sent, wire.Prepare)) - len(order) <= 3  # with the first

    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as group:
        for number, caller in enumerate("a" * 20 + "bc"):
            group.create_task(prepare(number, caller))
        await until(lambda: len(numbers(sent, wire.Prepare)) == 2)
    await first
    assert {"b", "c"} <= set(order[:4])


async def test_what_nobody_waits_for_is_not_prepared(
    engine: EngineClient, sent: list[wire.Command]
) -> None:
    """Counting tokens and leaving at once, again and again, is work for nobody, not even for the engine."""
    first = asyncio.create_task(engine.prepare(source(LONG), [], "a"))
    await until(lambda: bool(sent))
    leaving = [asyncio.create_task(engine.prepare(source(LONG), [], "b")) for _ in range(40)]
    await until(lambda: len(sent) == 2)
    for one in leaving:
        one.cancel()
    await asyncio.wait(leaving)
    begin = asyncio.get_running_loop().time()
    async with asyncio.timeout(BOUND_S):
        assert (await engine.prepare(source(1), [], "c")).token_ids == (1, 0)
        assert (await first).token_ids == (LONG, 0)
    assert asyncio.get_running_loop().time() - begin < 40 * PREPARE_S / 2
    assert numbers(sent, wire.Forget) == [2]
    assert numbers(sent, wire.Prepare) == [1, 2, 42]


async def test_one_that_was_forgotten_is_not_cleared() -> None:
    """The engine has not prepared it, so that it may still be the one that makes it fail."""
    place = Line(1).ask("a", 0)
    ended: list[tuple[int, bool]] = []
    prompts = PromptsInFlight(lambda prompt, answered: ended.append((prompt.number, answered)))
    replies = [
        wire.Prepared(1),
        wire.Prepared(2, layout=PromptLayout(token_ids=(1,))),
        wire.Prepared(3, failure=EngineFailure.of(InternalError("refused"))),
    ]
    for reply in replies:
        prompt = prompts.begin(source(1), 0, place)
        await prompts.wait(prompt, "a")  # those before have left their places
        prompt.sent = True
        prompt.layout.cancel()
        assert prompts.leave(prompt)
        prompts.settle(reply)
        assert not prompts.leave(prompt)
    assert ended == [(1, False), (2, True), (3, True)]


@pytest.mark.parametrize("size", [0, 600])
async def test_the_end_of_the_engine_ends_them(engine: EngineClient, size: int) -> None:
    pixels = [b"x" * size] if size else []
    first = asyncio.create_task(engine.prepare(source(STALL), pixels))
    await until(lambda: engine.pixel_bytes_in_flight == size)
    waiting = [asyncio.create_task(engine.prepare(source(1), pixels)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    for one in (first, *waiting):
        with pytest.raises(EngineUnavailableError):
            async with asyncio.timeout(BOUND_S):
                await one
    await until(lambda: engine.state is EngineState.READY)
    assert (await engine.prepare(source(1), [])).token_ids == (1, 0)


async def test_a_prompt_that_kills_the_engine_is_refused_and_its_request_is_not(
    engine: EngineClient,
) -> None:
    for _ in range(Quarantine.MAX_DEATHS):
        await crash(engine, 5)
    restarts = engine.restarts.copy()
    with pytest.raises(InternalError, match=r"at 2 failures of the engine"):
        await engine.prepare(source(5, CRASH), [b"x" * 600])
    assert engine.restarts == restarts
    assert (await engine.prepare(source(5), [])).token_ids == (5, 0)
    assert len(tokens_of(await collect(engine, request_of("a", 5)))) == 5


async def test_preparing_a_request_does_not_clear_it(engine: EngineClient) -> None:
    """A request that kills the engine is prepared again before each retry."""
    for _ in range(Quarantine.MAX_DEATHS):
        await engine.prepare(source(7), [])
        with pytest.raises(EngineUnavailableError):
            await collect(engine, request_of("a", 7, CRASH))
        await until(lambda: engine.state is EngineState.READY)
    await engine.prepare(source(7), [])
    with pytest.raises(InternalError, match="is refused for"):
        await collect(engine, request_of("a", 7, CRASH))


def test_fingerprints() -> None:
    red, blue = (
        PromptMedia(height=1, width=1, pixel_offset=0, digest=bytes([i]) * 32) for i in (1, 2)
    )
    prompts = [
        PromptSource(text="a"),
        PromptSource(text="\ud800"),
        PromptSource(text="a", is_guarded=True),
        PromptSource(text="a", media=(red,)),
        PromptSource(text="a", media=(blue,)),
        PromptSource(token_ids=(1,)),
        PromptSource(token_ids=(2,)),
    ]
    found = {fingerprint(prompt) for prompt in prompts} | {fingerprint(request_of("a", 1))}
    assert len(found) == len(prompts) + 1
