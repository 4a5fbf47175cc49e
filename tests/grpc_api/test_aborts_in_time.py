"""Aborts that come between the steps of a request: none is lost, and nothing is computed for nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inference_service.backend.engine_prompts import EnginePrompts
from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    EndReason,
    Finished,
    Role,
    TextCompletionRequest,
    TextPart,
)
from inference_service.errors import AbortedError, DrainingError
from tests.grpc_api.conftest import Service
from tests.grpc_api.echo_engine import EchoEngine


def request_of(text: str = "hello", **fields: Any) -> ChatRequest:
    message = ChatMessage(role=Role.USER, parts=(TextPart(text=text),))
    return ChatRequest(model="", request_id="r", messages=(message,), **fields)


async def test_an_abort_in_the_turn_in_which_the_engine_begins(service: Service) -> None:
    """The events begin without a turn of the loop between what the engine is given to and this abort."""
    events = service.backend.generate(request_of(n=2), "")
    await anext(events)
    assert await service.backend.abort("r", "")
    async with asyncio.timeout(20):
        rest = [event async for event in events]
    assert [e.reason for e in rest if isinstance(e, Finished)] == [EndReason.ABORTED] * 2
    assert service.engine.requests == []
    assert service.backend.in_flight == 0


async def test_an_abort_while_the_text_is_measured_ends_the_wait_for_media(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(*_: object) -> None:
        assert await service.backend.abort("r", "")

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(service.backend._prompts, "refuse_too_long", measured)
    monkeypatch.setattr(service.backend._media, "prepare", never)
    async with asyncio.timeout(20):
        with pytest.raises(AbortedError):
            await anext(service.backend.generate(request_of(), ""))
    assert service.backend.in_flight == 0


class SlowlyPreparing(EchoEngine):
    """Prepares no prompt in the time of a test; notes who has left."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.model.tokenizer)
        self.begun = asyncio.Event()
        self.left = 0

    async def prepare(self, *_: object) -> Any:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left += 1


@pytest.mark.parametrize("end", ["abort", "cut", "leave"])
@pytest.mark.parametrize("method", ["generate", "count", "render"])
async def test_the_end_of_a_request_ends_its_wait_for_a_prompt_of_the_engine(
    service: Service, method: str, end: str
) -> None:
    engine = SlowlyPreparing(service)
    backend = service.backend
    backend._answering._prompts = EnginePrompts(service.model.tokenizer, None, engine)
    request = TextCompletionRequest(model="", request_id="r", prompt="hello")
    begun = getattr(backend, method)(request, "")
    call: asyncio.Future[object] = asyncio.ensure_future(
        anext(begun) if method == "generate" else begun
    )
    async with asyncio.timeout(20):
        await engine.begun.wait()
        if end == "abort":
            assert await backend.abort("r", "")
        elif end == "cut":
            backend._admission.cut()
        else:
            call.cancel()
        await asyncio.wait([call])
    kinds = {"abort": AbortedError, "cut": DrainingError, "leave": asyncio.CancelledError}
    with pytest.raises(kinds[end]):
        await call
    assert (engine.left, backend.in_flight) == (1, 0)
