"""The adapter over real sockets: a fake service on gRPC and the application in uvicorn, both on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import io
import socket
import sys
import threading
import time
import traceback
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import openai
import pytest
import requests
import uvicorn

from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from rest_adapter.app import DIALECTS, create_app
from rest_adapter.dialect import Dialect
from rest_adapter.http_protocol import BoundedHttpProtocol
from rest_adapter.server import KEEP_ALIVE_S
from rest_adapter.settings import AdapterSettings
from tests.rest_adapter.fake_decisions import FakeDecisions
from tests.rest_adapter.fake_service import (
    FakeModels,
    Seen,
)
from tests.rest_adapter.fake_tokens import FakeTokens, RenderingChat, RenderingCompletions


HEARTBEAT_S = 0.2


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@dataclass
class Adapter:
    """A running adapter with the fake service behind it."""

    port: int
    grpc_target: str
    seen: Seen
    set_ready: Callable[[bool], None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, text: str = "hello", **fields: Any) -> requests.Response:
        headers = fields.pop("headers", None)
        body = {"model": "demo", "messages": [{"role": "user", "content": text}]} | fields
        return requests.post(
            f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30
        )

    def complete(self, prompt: object, **fields: Any) -> requests.Response:
        body = {"model": "demo", "prompt": prompt} | fields
        return requests.post(f"{self.url}/v1/completions", json=body, timeout=30)

    def decide(self, **fields: Any) -> requests.Response:
        question = {"type": "predicate", "instructions": "It is torn."}
        body = {"model": "demo", "input": "Parcel 7", "questions": [question]} | fields
        return requests.post(f"{self.url}/v1/decisions", json=body, timeout=30)

    def post(self, body: bytes) -> requests.Response:
        headers = {"content-type": "application/json"}
        return requests.post(
            f"{self.url}/v1/chat/completions", data=body, headers=headers, timeout=30
        )

    @property
    def spec(self):
        """What the service received last."""
        return self.seen.specs[-1]


def read_through_silence(adapter: Adapter, path: str, body: Any, mark: str) -> str:
    """The text of a stream whose question is "hold", which is answered when `mark` has come three times."""
    text = ""
    with requests.post(adapter.url + path, json=body, stream=True, timeout=30) as response:
        for piece in response.iter_content(None):
            text += piece.decode()
            adapter.seen.released = text.count(mark) >= 3
    return text


@contextlib.asynccontextmanager
async def fake_service(seen: Seen) -> AsyncIterator[tuple[int, health.aio.HealthServicer]]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 32 * 2**20)])
    chat_grpc.add_ChatServiceServicer_to_server(RenderingChat(seen), server)
    tokenize_grpc.add_TokenizeServiceServicer_to_server(FakeTokens(seen), server)
    completion_grpc.add_CompletionServiceServicer_to_server(RenderingCompletions(seen), server)
    decision_grpc.add_DecisionServiceServicer_to_server(FakeDecisions(seen), server)
    model_grpc.add_ModelServiceServicer_to_server(FakeModels(), server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, servicer
    finally:
        await server.stop(0)


def _what_holds(
    loop: asyncio.AbstractEventLoop, server: uvicorn.Server, thread: threading.Thread
) -> str:
    """Says what a server waits for that does not stop: its connections, its tasks, its thread."""
    text = io.StringIO()
    for connection in list(server.server_state.connections):
        assert isinstance(connection, BoundedHttpProtocol)
        text.write(f"connection {vars(connection)}\nh11 {vars(connection.conn)}\n")
    for task in asyncio.all_tasks(loop):
        task.print_stack(file=text)
    frame = sys._current_frames().get(thread.ident or 0)
    text.writelines(traceback.format_stack(frame))
    return f"The adapter does not stop.\n{text.getvalue()}"


@contextlib.contextmanager
def open_adapter(dialects: Sequence[Dialect] = DIALECTS, **settings: Any) -> Iterator[Adapter]:
    """Runs service and adapter in a thread with its own event loop."""
    seen = Seen()
    started = threading.Event()
    made: dict[str, Any] = {}

    async def run() -> None:
        async with fake_service(seen) as (grpc_port, servicer):
            target = settings.pop("grpc_target", f"127.0.0.1:{grpc_port}")
            app = create_app(AdapterSettings(grpc_target=target, **settings), dialects)
            config = uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                http=BoundedHttpProtocol,
                ws="none",
                # As in the program. After uvicorn's 5 s a request on a busy machine can meet the close, and is reset.
                timeout_keep_alive=KEEP_ALIVE_S,
            )
            server = uvicorn.Server(config)
            listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            loop = made["loop"] = asyncio.get_running_loop()

            def set_ready(ready: bool) -> None:
                status = health_pb2.HealthCheckResponse.ServingStatus
                value = status.SERVING if ready else status.NOT_SERVING
                asyncio.run_coroutine_threadsafe(servicer.set("readiness", value), loop).result(10)

            made.update(
                adapter=Adapter(listener.getsockname()[1], str(target), seen, set_ready),
                server=server,
                app=app,
            )
            loop.call_soon(started.set)
            await server.serve(sockets=[listener])

    # A daemon, because an adapter that does not stop fails its test and must not keep the whole run from its end.
    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(20)
    adapter = made["adapter"]
    assert isinstance(adapter, Adapter)
    server = made["server"]
    assert isinstance(server, uvicorn.Server)
    wait_until(lambda: server.started)
    try:
        yield adapter
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), _what_holds(made["loop"], server, thread)


@pytest.fixture(scope="session")
def shared_adapter() -> Iterator[Adapter]:
    with open_adapter(
        sse_heartbeat_s=HEARTBEAT_S, body_timeout_s=2, max_body_mib=4, max_media_mib=1
    ) as adapter:
        yield adapter


@pytest.fixture
def adapter(shared_adapter: Adapter) -> Adapter:
    """The shared adapter with nothing seen yet."""
    shared_adapter.seen.__dict__.update(Seen().__dict__)
    shared_adapter.set_ready(True)
    return shared_adapter


@pytest.fixture
def client(adapter: Adapter) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{adapter.url}/v1", api_key="none", max_retries=0) as client:
        yield client
