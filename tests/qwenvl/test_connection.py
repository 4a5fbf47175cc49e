"""One deadline over everything, the environment, and waiting for the service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
import re
import socket
import time
from types import SimpleNamespace
from typing import Any

import grpc
from grpc.aio import Metadata
import pytest

from inference_service.engine_client.interface import EngineState
from inference_service.metrics.families import CALLS_STARTED
from qwenvl import Client, DeadlineExceededError, Error, UnavailableError, connection
from qwenvl.connection import DEFAULT_TARGET, ReadinessWait, metadata_of, target_of
from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.rpc import call_timeout
from qwenvl.testing import FakeServer
from tests.grpc_api.asking import until
from tests.grpc_api.conftest import OpenService, Service
from tests.qwenvl.both import CLIENTS, EitherClient, call, pieces
from tests.support.ports import free_port


TIMEOUT_S = 0.3
PATIENCE_S = 8.0
"""Far above the timeout, far below the 20 s that gRPC gives a handshake."""

CALLS: dict[str, Callable[[EitherClient, float], Any]] = {
    "chat": lambda client, s: call(client.chat, "x", timeout_s=s),
    "complete": lambda client, s: call(client.complete, "x", timeout_s=s),
    "stream": lambda client, s: pieces(client.stream("x", timeout_s=s)),
    "stream_complete": lambda client, s: pieces(client.stream_complete("x", timeout_s=s)),
    "events": lambda client, s: pieces(client.events("x", timeout_s=s)),
    "count_tokens": lambda client, s: call(client.count_tokens, "x", timeout_s=s),
    "render": lambda client, s: call(client.render, "x", timeout_s=s),
    "tokenize": lambda client, s: call(client.tokenize, "x", timeout_s=s),
    "detokenize": lambda client, s: call(client.detokenize, [1], timeout_s=s),
    "models": lambda client, s: call(client.models, timeout_s=s),
    "model": lambda client, s: call(client.model, timeout_s=s),
    "abort": lambda client, s: call(client.abort, "x", timeout_s=s),
    "conversation": lambda client, s: call(client.conversation().ask, "x", timeout_s=s),
    "wait_until_ready": lambda client, s: call(client.wait_until_ready, s),
}


@pytest.fixture
def silent() -> Iterator[str]:
    """A peer that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(params=CLIENTS)
def kind(request: Any) -> Any:
    return request.param


@pytest.mark.parametrize("name", CALLS)
async def test_the_deadline_covers_connecting(silent: str, kind: Any, name: str) -> None:
    client = kind(silent)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="timeout_s; the service is slow, or cannot"):
        await CALLS[name](client, TIMEOUT_S)
    assert TIMEOUT_S * 0.9 < time.monotonic() - begin < PATIENCE_S
    await call(client.close)


async def test_the_deadline_covers_retries(kind: Any) -> None:
    with FakeServer() as server:
        server.fail("MODEL_LOADING", times=9)
        server.delay(0.2)
        client = kind(server.target)
        begin = time.monotonic()
        with pytest.raises(Error) as caught:
            await call(client.chat, "x", timeout_s=TIMEOUT_S)
        assert time.monotonic() - begin < PATIENCE_S
        assert isinstance(caught.value, (DeadlineExceededError, UnavailableError))
        await call(client.close)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
async def test_a_timeout_is_positive(kind: Any, timeout_s: float) -> None:
    client = kind("127.0.0.1:1")
    for ask in CALLS.values():
        with pytest.raises(ValueError, match="timeout_s"):
            await ask(client, timeout_s)
    await call(client.close)
    assert call_timeout(None) is call_timeout(float("inf")) is None


@pytest.mark.parametrize(
    "name",
    [
        "chat",
        "stream_complete",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("complete", "stream")),
        pytest.param("count_tokens", marks=pytest.mark.full),
    ],
)
async def test_every_method_is_retried(kind: Any, name: str) -> None:
    with FakeServer() as server:
        client = kind(server.target)
        server.fail("DRAINING", times=3)
        await CALLS[name](client, 30.0)
        assert len(server.chat_requests) + len(server.completion_requests) == 4
        await call(client.close)


async def test_what_an_engine_may_have_died_of_is_sent_once(kind: Any) -> None:
    with FakeServer() as server:
        client = kind(server.target)
        for name in ("chat", "complete", "stream", "stream_complete", "count_tokens"):
            before = len(server.chat_requests) + len(server.completion_requests)
            server.fail("ENGINE_UNAVAILABLE")
            with pytest.raises(UnavailableError):
                await CALLS[name](client, 30.0)
            assert len(server.chat_requests) + len(server.completion_requests) == before + 1
        await call(client.close)


async def test_what_was_in_flight_is_sent_once(kind: Any, open_service: OpenService) -> None:
    service: Service = await open_service()
    service.engine.hold_at = 0
    client = kind(service.target())
    before = calls_started()
    asked = asyncio.ensure_future(call(client.chat, "x", timeout_s=20))
    await until(lambda: bool(service.engine.live))
    service.engine.become(EngineState.RESTARTING)
    with pytest.raises(UnavailableError) as caught:
        await asked
    assert caught.value.reason == "ENGINE_UNAVAILABLE"
    assert calls_started() == before + 1
    await call(client.close)


async def test_what_no_engine_has_seen_is_sent_to_another_replica(
    kind: Any, open_service: OpenService
) -> None:
    services = [await open_service() for _ in range(2)]
    services[0].engine.become(EngineState.RESTARTING)
    client = kind("ipv4:" + ",".join(service.target() for service in services))
    before, answers = calls_started(), 0
    async with asyncio.timeout(20):
        while calls_started() == before + answers:  # the balancing has not yet chosen the first one
            assert (await call(client.chat, "x", timeout_s=20)).text == "x"
            answers += 1
    await call(client.close)


def calls_started() -> float:
    started = CALLS_STARTED.labels("qwenvl.inference.v1.ChatService/CreateChatCompletion")
    return float(started._value.get())


async def test_requests_of_every_size_are_retried(kind: Any) -> None:
    with FakeServer() as server:
        client = kind(server.target)
        for size in (300_000, MAX_MESSAGE_BYTES - 1_000):
            server.fail("DRAINING")
            assert (await call(client.chat, "x", images=bytes(size))).text == "x"
        assert len(server.chat_requests) == 2 * 2
        await call(client.close)


async def test_no_service_there(kind: Any) -> None:
    client = kind("127.0.0.1:1")
    with pytest.raises(UnavailableError) as caught:
        await call(client.chat, "x", timeout_s=20)
    assert (caught.value.reason, caught.value.request_id) == ("", "")
    await call(client.close)


async def test_waiting_until_the_model_is_loaded(kind: Any, open_service: OpenService) -> None:
    service: Service = await open_service(ready=False)
    client = kind(service.target())
    with pytest.raises(DeadlineExceededError, match="reports that it is not ready"):
        await call(client.wait_until_ready, 1.0)
    waiting = asyncio.ensure_future(call(client.wait_until_ready, 30))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await service.engine.start()
    await waiting
    assert (await call(client.chat, "x")).text == "x"
    await call(client.close)


NOT_SERVING = b"\x08\x02"
DEADLINE, UNAVAILABLE = grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([(0, NOT_SERVING), (9.9, DEADLINE)], "it reports that it is not ready"),
        ([(0, UNAVAILABLE), (9.9, DEADLINE)], "UNAVAILABLE: details"),
        ([(0, NOT_SERVING), (5, DEADLINE)], "DEADLINE_EXCEEDED: details"),
        ([(0, NOT_SERVING), (9.9, UNAVAILABLE)], "UNAVAILABLE: details"),
        ([(9.9, DEADLINE)], "DEADLINE_EXCEEDED: details"),
        ([], "it has not answered"),
    ],
)
def test_the_end_of_a_wait_hides_no_reason(
    outcomes: list[tuple[float, bytes | grpc.StatusCode]],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last question, which the end cuts short, tells a reason only where no other has told one."""
    now = 0.0
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now))
    wait = ReadinessWait("t", 10)
    for now, outcome in outcomes:  # noqa: B007 - the clock
        wait.next_attempt_s()
        if isinstance(outcome, bytes):
            assert not wait.is_over(outcome)
        else:
            wait.failed(grpc.aio.AioRpcError(outcome, Metadata(), Metadata(), details="details"))
    now = 10.0
    with pytest.raises(DeadlineExceededError, match=f"{says}$"):
        wait.next_attempt_s()


async def test_waiting_until_something_listens(kind: Any) -> None:
    port = free_port()
    client = kind(f"127.0.0.1:{port}")
    with pytest.raises(DeadlineExceededError, match=f"127.0.0.1:{port} .* UNAVAILABLE"):
        await call(client.wait_until_ready, 1.0)
    await call(client.close)


async def test_waiting_for_something_else_is_useless(kind: Any) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = kind(f"127.0.0.1:{port}")
    with pytest.raises(Error) as caught:
        await call(client.wait_until_ready, 30)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED
    await call(client.close)
    await server.stop(0)


async def test_target_and_key_of_the_environment(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer(api_key="secret") as server, FakeServer() as other:
        monkeypatch.setenv("QWENVL_GRPC_TARGET", server.target)
        monkeypatch.setenv("QWENVL_API_KEY", "secret\n")
        for client, works in (
            (kind(), True),
            (kind(api_key=""), False),
            (kind(other.target), True),
        ):
            if works:
                assert (await call(client.chat, "x")).text == "x"
            else:
                with pytest.raises(Error) as caught:
                    await call(client.chat, "x")
                assert caught.value.reason == "UNAUTHENTICATED"
            await call(client.close)


def test_where_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QWENVL_GRPC_TARGET", "QWENVL_API_KEY"):
        monkeypatch.setenv(name, " ")
        assert (target_of(None), metadata_of(None)) == (DEFAULT_TARGET, ())
        monkeypatch.delenv(name)
        assert (target_of(None), metadata_of(None)) == (DEFAULT_TARGET, ())
    assert metadata_of(" k ") == (("authorization", "Bearer k"),)
    for key in ("schlüssel", "a\nb", "a\0"):
        with pytest.raises(ValueError, match="API key") as caught:
            Client(api_key=key)
        assert key not in str(caught.value)


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY"])
async def test_a_proxy_for_the_internet_is_not_asked(
    kind: Any, name: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer() as server:
        monkeypatch.setenv(name, f"http://{silent}")
        monkeypatch.delenv("no_proxy", raising=False)
        client = kind(server.target)
        assert (await call(client.chat, "x", timeout_s=PATIENCE_S)).text == "x"
        await call(client.close)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(
    "target", ["127.0.0.1:99999", "127.0.0.1:-1", "http://x:1", "::1:50051", ":1"]
)
def test_a_target_that_calls_something_else_is_refused(
    kind: Any, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"^target is {re.escape(repr(target))}, but "):
        kind(target)
    monkeypatch.setenv("QWENVL_GRPC_TARGET", target)
    with pytest.raises(ValueError, match=r"^QWENVL_GRPC_TARGET is "):
        kind()


@pytest.mark.parametrize("kind", CLIENTS)
def test_target_and_key_are_texts(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"^target is a text"):
        kind(50051)
    with pytest.raises(TypeError, match=r"^api_key is a text"):
        kind(api_key=b"key")


@pytest.mark.parametrize("timeout_s", [1e9, 1e10, 1e300, 10**400, float("inf"), None])
async def test_a_deadline_that_never_comes(timeout_s: float | None) -> None:
    with FakeServer("Yes.") as server, Client(server.target) as client:
        assert (await call(client.chat, "?", timeout_s=timeout_s)).text == "Yes."
        await call(client.wait_until_ready, timeout_s)


@pytest.mark.parametrize("timeout_s", ["1", b"1", [1], True])
def test_a_timeout_is_a_number(timeout_s: Any) -> None:
    with pytest.raises(TypeError, match=r"^timeout_s is a number of seconds or None, not "):
        call_timeout(timeout_s)
