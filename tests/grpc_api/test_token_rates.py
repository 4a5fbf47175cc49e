"""Tokens count against --max-tokens-per-minute when they are computed, whether or not the client stays."""

from __future__ import annotations

import asyncio

import pytest

from inference_service.metrics import families
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from tests.grpc_api.asking import image_part, read_event, refusal, spec_of, text_part, until, user
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import draw


MANY = 10_000


def used(service: Service) -> float:
    """Tokens that the only caller has used in this minute, but for those that time has given back."""
    (entry,) = service.backend._rates._used.values()
    return entry[1].tokens


async def check_refused(service: Service) -> None:
    refused = await refusal(service.create(spec_of("x")))
    assert refused.info.reason == "RATE_LIMIT_EXCEEDED"
    assert refused.info.metadata["kind"] == "tokens"
    assert "--max-tokens-per-minute" in refused.message


async def left_after(service: Service, kind: str, text: str, max_tokens: int) -> None:
    """Asks for an answer and leaves after the first event of a kind."""
    stream = service.stream(spec_of(text, sampling={"max_tokens": max_tokens}))
    while (await read_event(stream)).WhichOneof("event") != kind:
        pass
    stream.cancel()
    await until(lambda: service.backend.in_flight == 0)


async def test_who_stays_has_used_what_the_usage_says(open_service: OpenService) -> None:
    service = await open_service(max_tokens_per_minute=MANY)
    response = await service.create(spec_of("hello" * 9, n=2, sampling={"max_tokens": 7}))
    tokens = response.usage.prompt_tokens + response.usage.completion_tokens
    assert used(service) == pytest.approx(tokens, abs=MANY / 60)
    assert tokens > 20


@pytest.mark.parametrize("kind", ["started", "delta", "finished"])
async def test_who_leaves_has_used_the_prompt(open_service: OpenService, kind: str) -> None:
    service = await open_service(max_tokens_per_minute=300)
    await left_after(service, kind, "x" * 600, 3)
    await check_refused(service)


async def test_who_leaves_has_used_the_answer(open_service: OpenService) -> None:
    """All of it has been read, but for the usage."""
    service = await open_service(max_tokens_per_minute=300)
    await left_after(service, "finished", "x" * 600, 600)
    assert used(service) > 1000
    await check_refused(service)


async def test_who_leaves_has_used_the_questions(open_service: OpenService) -> None:
    service = await open_service(max_tokens_per_minute=300)
    service.engine.hold_at = 0
    before = families.PROMPT_TOKENS._value.get()
    question = decision_pb.DecisionQuestion(
        instructions=[text_part("Is it?")], predicate=decision_pb.PredicateQuestion()
    )
    spec = decision_pb.DecisionSpec(model="echo", messages=[user("x" * 600)], questions=[question])
    call = service.decisions.CreateDecisions(decision_pb.CreateDecisionsRequest(spec=spec))
    await until(lambda: bool(service.engine.live))
    call.cancel()
    await until(lambda: service.backend.in_flight == 0)
    assert families.PROMPT_TOKENS._value.get() - before > 600
    await check_refused(service)


async def test_who_leaves_has_used_the_images(
    open_service: OpenService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once they are decoded: the text of the prompt is not made yet."""
    service = await open_service(max_image_bytes_per_minute=1000)
    begun: list[object] = []

    async def endless(*_: object) -> None:
        begun.append(None)
        await asyncio.Event().wait()

    monkeypatch.setattr(service.backend._prompts, "prepare", endless)
    call = asyncio.create_task(service.create(spec_of(image_part(draw("red", "circle").png))))
    await until(lambda: bool(begun))
    call.cancel()
    await until(lambda: service.backend.in_flight == 0)
    refused = await refusal(service.create(spec_of("x")))
    assert refused.info.metadata["kind"] == "image_bytes"


async def test_prompts_that_are_refused_use_nothing(open_service: OpenService) -> None:
    service = await open_service(max_tokens_per_minute=300)
    await refusal(service.create(spec_of("x" * 100_000)))
    assert used(service) == 0
    assert (await service.create(spec_of("x"))).choices
