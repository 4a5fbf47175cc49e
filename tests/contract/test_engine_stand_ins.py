"""What the server relies on, checked against its own stand-in and the engine's client on a fake engine process.

That the fake process behaves as the real one is checked in tests/engine_client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from inference_service.engine_client.interface import Engine, EngineState
from inference_service.engine_protocol.messages import ChoiceOutput, EngineRequest, FinishReason
from inference_service.errors import EngineUnavailableError, RequestIdInUseError
from inference_service.text.tokenizer import Tokenizer
from tests.engine_client.engine_front import (
    BOUND_S,
    collect,
    fake_client,
    finishes_of,
    request_of,
    tokens_of,
    until,
)
from tests.grpc_api.echo_engine import EchoEngine


ENDLESS = 2**31 - 1
"""So many tokens that no request ends before it is aborted; the stand-in would end with EOS after `_Letters`."""


class _Letters:
    """A tokenizer whose every question is long."""

    def decode(self, token_ids: object, *, skip_special_tokens: bool) -> str:
        del token_ids, skip_special_tokens
        return "<|im_start|>user\n" + "x" * 400

    def encode_plain(self, text: str) -> list[int]:
        return list(text.encode())


@pytest.fixture(params=["stand-in", "client"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    # `_Letters` has what the stand-in uses of a tokenizer.
    stand_in = request.param == "stand-in"
    made = EchoEngine(cast(Tokenizer, _Letters())) if stand_in else fake_client()
    states: list[EngineState] = []
    made.on_state_change(states.append)
    assert made.state is EngineState.STARTING
    assert made.ready is None
    with pytest.raises(EngineUnavailableError):
        await collect(made, request_of("early"))
    await made.start()
    assert states == [EngineState.READY]
    yield made
    await made.close()
    assert states[-1] is EngineState.CLOSED
    with pytest.raises(EngineUnavailableError):
        await collect(made, request_of("late"))


def endless(request_id: str, *, num_choices: int = 1) -> EngineRequest:
    return request_of(request_id, max_tokens=ENDLESS, num_choices=num_choices)


async def test_outputs_end_once_and_only_the_first_tells_what_was_cached(engine: Engine) -> None:
    outputs = await collect(engine, request_of("a", max_tokens=5))
    assert len(tokens_of(outputs)) == 5
    assert [o.finish_reason for o in outputs] == [None] * (len(outputs) - 1) + [FinishReason.LENGTH]
    assert [o.num_cached_tokens is not None for o in outputs] == [True] + [False] * (
        len(outputs) - 1
    )
    assert {o.request_id for o in outputs} == {"a"}


async def test_abort_ends_the_outputs_as_aborted(engine: Engine) -> None:
    await engine.abort("nobody")
    async with asyncio.timeout(BOUND_S), aclosing(engine.generate(endless("a"), [])) as outputs:
        await anext(outputs)
        await engine.abort("a")
        last = [output.finish_reason async for output in outputs][-1]
    assert last is FinishReason.ABORTED
    await until(lambda: engine.stats.running == 0)


async def test_an_id_is_in_use_until_its_outputs_are_closed(engine: Engine) -> None:
    async with asyncio.timeout(60), aclosing(engine.generate(endless("a"), [])) as outputs:
        await anext(outputs)
        with pytest.raises(RequestIdInUseError):
            await anext(engine.generate(endless("a"), []))
    assert tokens_of(await collect(engine, request_of("a", max_tokens=2)))
    await until(lambda: engine.stats.running == 0)


async def test_every_choice_ends_once_in_one_stream(engine: Engine) -> None:
    outputs = await collect(engine, request_of("a", max_tokens=5, num_choices=3))
    assert finishes_of(outputs) == [(choice, FinishReason.LENGTH) for choice in range(3)]
    for choice in range(3):
        assert len(tokens_of(outputs, choice)) == 5
        told = [o.num_cached_tokens for o in outputs if o.choice_index == choice]
        assert [number is not None for number in told] == [True] + [False] * (len(told) - 1)
    await until(lambda: engine.stats.running == 0)


async def test_one_choice_is_aborted_and_the_others_go_on(engine: Engine) -> None:
    stream = engine.generate(endless("a", num_choices=3), [])
    async with asyncio.timeout(BOUND_S), aclosing(stream):
        outputs = [await anext(stream)]
        await engine.abort("a", 1)
        while not (ends := finishes_of(outputs)):
            outputs.append(await anext(stream))
        assert ends == [(1, FinishReason.ABORTED)]
        later: list[ChoiceOutput] = []
        while min(len(tokens_of(later, choice)) for choice in (0, 2)) < 20:
            later.append(await anext(stream))
        assert {output.choice_index for output in later} == {0, 2}
        assert finishes_of(later) == []
        await engine.abort("a")
        rest = [output async for output in stream]
    assert finishes_of(rest) == [(0, FinishReason.ABORTED), (2, FinishReason.ABORTED)]
    await until(lambda: engine.stats.running == 0)


async def test_abort_of_a_request_ends_all_its_choices(engine: Engine) -> None:
    stream = engine.generate(endless("a", num_choices=3), [])
    async with asyncio.timeout(BOUND_S), aclosing(stream):
        outputs = [await anext(stream)]
        await engine.abort("a")
        outputs += [output async for output in stream]
    assert finishes_of(outputs) == [(choice, FinishReason.ABORTED) for choice in range(3)]
    await until(lambda: engine.stats.running == 0)
