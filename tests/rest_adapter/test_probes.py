"""GET /health, /ready and /version."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import contextlib

import grpc
import requests

from qwenvl.connection import HEALTH_CHECK, SERVING_RESPONSE
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from rest_adapter.service_connection import ServiceConnection
from rest_adapter.settings import AdapterSettings
from tests.rest_adapter.conftest import Adapter


STREAMS = 3


def test_ready_follows_the_service(adapter: Adapter) -> None:
    def status(path: str) -> int:
        return requests.get(adapter.url + path, timeout=10).status_code

    assert status("/ready") == 200
    adapter.set_ready(False)
    assert status("/ready") == 503
    assert status("/health") == 200
    adapter.set_ready(True)
    assert status("/ready") == 200


def test_version_is_reported(adapter: Adapter) -> None:
    assert requests.get(f"{adapter.url}/version", timeout=10).json()["version"]


class Busy(grpc.GenericRpcHandler):
    """A service that is healthy and answers nothing else."""

    def __init__(self) -> None:
        self.running = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        is_health = handler_call_details.method == HEALTH_CHECK

        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            del request, context
            if not is_health:
                self.running += 1
                await asyncio.Event().wait()
            return SERVING_RESPONSE

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def serving(busy: Busy) -> AsyncIterator[ServiceConnection]:
    server = grpc.aio.server(options=[("grpc.max_concurrent_streams", STREAMS)])
    server.add_generic_rpc_handlers((busy,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = ServiceConnection(AdapterSettings(grpc_target=f"127.0.0.1:{port}"))
    connection.open()
    try:
        yield connection
    finally:
        await connection.close()
        await server.stop(0)


async def test_calls_that_fill_a_connection_do_not_hide_that_the_service_is_ready() -> None:
    busy = Busy()
    async with serving(busy) as connection:
        assert await connection.service.ready()
        spec = chat_pb.ChatCompletionSpec(model="demo")
        calls = [
            asyncio.create_task(connection.service.create_chat(spec)) for _ in range(2 * STREAMS)
        ]
        async with asyncio.timeout(20):
            while busy.running < STREAMS:  # noqa: ASYNC110 - it is set by a call
                await asyncio.sleep(0.01)
        assert await connection.service.ready()
        assert busy.running == STREAMS, "the others wait"
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
