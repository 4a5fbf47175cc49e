"""Callers that hammer are refused before their requests are read, and the others are not."""

from __future__ import annotations

import asyncio
import gc
from typing import Any
import weakref

import grpc
import pytest
from starlette.types import Message, Receive, Scope, Send

from qwenvl.observability import CallContext, enter_call
from rest_adapter.app import DIALECTS
from rest_adapter.dialect import error_response
from rest_adapter.errors import of_reason
from rest_adapter.paths import Endpoints
from rest_adapter.refusals import RefuseHammering


HAMMERING = 40


class Service:
    """An application that refuses everybody, and how often it was asked."""

    def __init__(self, reason: str, cause: Exception | None = None) -> None:
        self.reason = reason
        self.cause = grpc.RpcError() if cause is None else cause
        self.asked = 0
        self.now_s = 1000.0
        self.door = RefuseHammering(self, lambda: self.now_s)
        self.slept_s: list[float] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        error = of_reason(self.reason, "No.", retry_after_s=7.0)
        error.__cause__ = self.cause
        await error_response(scope, error)(scope, receive, send)

    async def ask(
        self,
        key: str = "",
        method: str = "POST",
        body: int = 10,
        path: str = "/v1/chat/completions",
    ) -> tuple[int, str]:
        """The status and the `retry-after` of a request."""
        app = type("App", (), {"state": type("State", (), {})()})()
        app.state.dialects, app.state.endpoints = DIALECTS, Endpoints((), ())
        headers = [(b"content-length", b"%d" % body)]
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": headers,
            "state": {},
            "app": app,
        }
        sent: list[Message] = []
        self.received = 0

        async def receive() -> Message:
            self.received += 1
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        enter_call(CallContext.from_headers({"authorization": f"Bearer {key}"}))
        await self.door(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"].decode()


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio.sleep
    monkeypatch.setattr("qwenvl.pacing.asyncio.sleep", lambda _: real(0))


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("reason", ["QUEUE_FULL", "RATE_LIMIT_EXCEEDED"])
async def test_who_hammers_is_refused_without_asking_the_service(reason: str) -> None:
    service = Service(reason)
    for _ in range(HAMMERING):
        assert await service.ask("greedy") == (429, "7")
    assert 10 <= service.asked < 15
    asked = service.asked
    await service.ask("another")
    await service.ask("greedy", method="GET")
    assert service.asked == asked + 2
    service.now_s += 0.3
    await service.ask("greedy")
    assert service.asked == asked + 3, "it may have room now"


@pytest.mark.usefixtures("_no_waiting")
async def test_what_the_adapter_refuses_is_about_one_request() -> None:
    service = Service("QUEUE_FULL", cause=MemoryError())
    for _ in range(HAMMERING):
        await service.ask("greedy")
    assert service.asked == HAMMERING


@pytest.mark.usefixtures("_no_waiting")
async def test_who_hammers_may_cancel() -> None:
    service = Service("QUEUE_FULL")
    for _ in range(HAMMERING):
        await service.ask("greedy")
    asked = service.asked
    await service.ask("greedy", path="/v1/responses/resp_1/cancel")
    assert service.asked == asked + 1


@pytest.mark.usefixtures("_no_waiting")
async def test_nothing_of_a_refused_request_is_kept() -> None:
    class Failure(grpc.RpcError):
        """What the finished frames of a request hang on."""

    services = [Service("QUEUE_FULL", cause=Failure()) for _ in range(2)]
    kept = weakref.ref(services[0].cause)
    for _ in range(HAMMERING):
        await services[0].ask("greedy")
    services[0].cause = services[1].cause
    gc.collect()
    assert kept() is None


@pytest.mark.usefixtures("_no_waiting")
async def test_who_waits_as_told_always_asks_the_service() -> None:
    service = Service("QUEUE_FULL")
    for _ in range(HAMMERING):
        await service.ask("polite")
        service.now_s += 1.0
    assert service.asked == HAMMERING


@pytest.mark.usefixtures("_no_waiting")
async def test_other_failures_are_told_by_the_service() -> None:
    service = Service("DRAINING")
    for _ in range(HAMMERING):
        await service.ask("greedy")
    assert service.asked == HAMMERING


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(("body", "received"), [(100, 1), (10_000_000, 0)])
async def test_small_bodies_are_received_so_that_the_connection_goes_on(
    body: int, received: int
) -> None:
    service = Service("QUEUE_FULL")
    for _ in range(HAMMERING):
        await service.ask("greedy", body=body)
    assert service.received == received
