"""A client that is closed, before or during a call, says so in its own words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import threading
from typing import Any

import pytest

from qwenvl import AbortedError, AsyncClient, Client
from qwenvl.testing import FakeServer
from tests.qwenvl.both import CLIENTS, call, pieces


CALLS: dict[str, Callable[[Any], Any]] = {
    "chat": lambda client: call(client.chat, "x"),
    "complete": lambda client: call(client.complete, "x"),
    "count_tokens": lambda client: call(client.count_tokens, "x"),
    "render": lambda client: call(client.render, "x"),
    "tokenize": lambda client: call(client.tokenize, "x"),
    "detokenize": lambda client: call(client.detokenize, [1]),
    "models": lambda client: call(client.models),
    "model": lambda client: call(client.model),
    "abort": lambda client: call(client.abort, "x"),
    "wait_until_ready": lambda client: call(client.wait_until_ready, 1),
    "stream": lambda client: pieces(client.stream("x")),
    "stream_complete": lambda client: pieces(client.stream_complete("x")),
    "conversation": lambda client: call(client.conversation().ask, "x"),
}


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("used", [True, False])
async def test_a_closed_client_refuses(kind: Any, name: str, used: bool) -> None:
    with FakeServer("hi") as server:
        client = kind(server.target)
        if used:
            await call(client.chat, "x")
        await call(client.close)
        with pytest.raises(RuntimeError, match=rf"^this {kind.__name__} is closed: create another"):
            await CALLS[name](client)
        await call(client.close)


@pytest.mark.parametrize("name", ["chat", "complete", "stream"])
async def test_a_client_that_is_closed_during_a_call(name: str) -> None:
    with FakeServer("hi") as server:
        server.delay(30)
        client = AsyncClient(server.target)
        asyncio.get_running_loop().call_later(0.3, lambda: asyncio.ensure_future(client.close()))
        with pytest.raises(AbortedError, match="the client was closed while this call"):
            await CALLS[name](client)


@pytest.mark.parametrize(
    "ask", [lambda client: client.chat("x"), lambda client: list(client.stream("x"))]
)
def test_a_client_that_another_thread_closes_during_a_call(ask: Callable[[Client], Any]) -> None:
    with FakeServer("hi") as server:
        server.delay(30)
        client = Client(server.target)
        closing = threading.Timer(0.3, client.close)
        closing.start()
        with pytest.raises(AbortedError, match="the client was closed while this call"):
            ask(client)
        closing.join()


async def test_a_task_that_is_cancelled_stays_cancelled() -> None:
    with FakeServer("hi") as server:
        server.delay(30)
        client = AsyncClient(server.target)
        task = asyncio.create_task(client.chat("x"))
        await asyncio.sleep(0.3)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task
