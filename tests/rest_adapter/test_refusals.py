"""Callers that hammer are refused before their requests are read, and the others are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import gc
from pathlib import Path
import threading
from typing import Any
import weakref

import grpc
import pytest
import requests
from starlette.types import Message, Receive, Scope, Send

from qwenvl.observability import CallContext, enter_call
from rest_adapter.app import DIALECTS
from rest_adapter.dialect import error_response
from rest_adapter.errors import ApiError, of_reason
from rest_adapter.paths import Endpoints
from rest_adapter.refusals import RefuseHammering, begin_calls, take_calls
from tests.rest_adapter.conftest import open_adapter, wait_until


HAMMERING = 40


class Service:
    """An application that refuses everybody, and how often it was asked."""

    def __init__(
        self,
        reason: str,
        cause: Exception | None = None,
        max_calls: int | None = None,
        param: str | None = None,
    ) -> None:
        self.reason, self.param = reason, param
        self.cause = grpc.RpcError() if cause is None else cause
        self.asked = 0
        self.now_s = 1000.0
        self.door = RefuseHammering(self, lambda: self.now_s, max_calls)
        self.bodies = asyncio.Event()  # those that are not there yet come when it is set
        self.bodies.set()
        self.answers = asyncio.Event()
        self.answers.set()
        self.calls = 1
        self.waiting = self.released = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.waiting += 1
        await self.bodies.wait()
        try:
            await begin_calls(scope, self._release)
            take_calls(scope, self.calls - 1)
        except ApiError as refusal:
            await error_response(scope, refusal)(scope, receive, send)
            return
        self.asked += 1
        await self.answers.wait()
        error = of_reason(self.reason, "No.", param=self.param, retry_after_s=7.0)
        error.__cause__ = self.cause
        await error_response(scope, error)(scope, receive, send)

    def _release(self) -> None:
        self.released += 1

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

        enter_call(caller_of(key))
        await self.door(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"].decode()


def caller_of(key: str) -> CallContext:
    return CallContext.from_headers({"authorization": f"Bearer {key}"})


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it did not happen")


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
async def test_a_refusal_of_images_is_about_one_request() -> None:
    service = Service("QUEUE_FULL", param="messages[0].content[1].image_url.url")
    for _ in range(HAMMERING):
        await service.ask("with images")
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


@pytest.mark.usefixtures("_no_waiting")
async def test_bodies_that_end_at_once_do_not_pass_together() -> None:
    """Their heads came when nobody was refused."""
    service = Service("QUEUE_FULL")
    service.bodies.clear()
    held = [asyncio.create_task(service.ask("greedy")) for _ in range(100)]
    await until(lambda: service.waiting == 100)
    assert service.asked == 0
    caller = caller_of("greedy").caller
    for _ in range(HAMMERING):
        service.door._note(caller, of_reason("QUEUE_FULL", "No.", retry_after_s=7.0))
    service.bodies.set()
    assert set(await asyncio.gather(*held)) == {(429, "7")}
    assert service.asked == 0
    assert service.released == 100, "no body is kept while its refusal waits"


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("calls", [1, 5])
async def test_one_caller_has_so_many_calls_in_flight(calls: int) -> None:
    service = Service("DRAINING", max_calls=20)
    service.calls = calls
    service.bodies.clear()
    service.answers.clear()
    held = [asyncio.create_task(service.ask("greedy")) for _ in range(100)]
    await until(lambda: service.waiting == 100)
    service.bodies.set()
    await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert service.asked == 20 // calls
    refused = [task.result() for task in held if task.done()]
    assert len(refused) == 100 - 20 // calls
    assert {status for status, _ in refused} == {429}
    asked = service.asked
    other = asyncio.create_task(service.ask("another"))
    await until(lambda: service.asked != asked)
    service.answers.set()
    await asyncio.gather(other, *held)
    assert not service.door._in_flight, "all have ended"
    assert (await service.ask("greedy"))[0] == 503, "the service is asked again"


@pytest.mark.usefixtures("_no_waiting")
async def test_callers_that_nobody_can_tell_apart_have_no_limit() -> None:
    service = Service("DRAINING")
    service.answers.clear()
    held = [asyncio.create_task(service.ask("")) for _ in range(600)]
    await until(lambda: service.asked == 600)
    service.answers.set()
    await asyncio.gather(*held)


MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": MESSAGES},
    "completions": {"prompt": "hello"},
    "decisions": {"input": "x", "questions": [{"type": "predicate", "instructions": "y"}]},
    "messages": {"messages": MESSAGES, "max_tokens": 9},
    "messages/count_tokens": {"messages": MESSAGES},
    "responses": {"input": "hello"},
    "responses/compact": {"input": "hello"},
    "responses/input_tokens": {"input": "hello"},
}


def test_every_route_counts_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rest_adapter.app.MAX_CALLS", 2)
    keys = tmp_path / "keys"
    keys.write_text("greedy-key-0123456789\nanother-key-0123456789\n")
    with open_adapter(api_key_file=str(keys)) as adapter:

        def post(key: str, path: str, **more: Any) -> int:
            headers = {"authorization": f"Bearer {key}-key-0123456789"}
            body = {"model": "demo"} | BODIES[path] | more
            url = f"{adapter.url}/v1/{path}"
            return requests.post(url, json=body, headers=headers, timeout=30).status_code

        assert post("greedy", "completions", prompt=["a"] * 3) == 429, "a call for each prompt"
        assert post("greedy", "completions", prompt=["a"] * 2) == 200
        held = [
            threading.Thread(
                target=post,
                args=("greedy", "chat/completions"),
                kwargs={"messages": [{"role": "user", "content": "hold"}]},
            )
            for _ in range(2)
        ]
        for thread in held:
            thread.start()
        wait_until(lambda: adapter.seen.running == 2)
        statuses = {path: (post("greedy", path), post("another", path)) for path in BODIES}
        adapter.seen.released = True
        for thread in held:
            thread.join(30)
        refused = {path: 529 if path.startswith("messages") else 429 for path in BODIES}
        assert statuses == {path: (refused[path], 200) for path in BODIES}
        assert {post("greedy", path) for path in BODIES} == {200}
