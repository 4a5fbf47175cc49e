"""Several services behind one channel, and a peer that vanishes."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import grpc.aio
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.rpc import channel_options
from tests.grpc_api.asking import spec_of, until


async def test_calls_are_spread_over_all_replicas(open_service) -> None:
    replicas = [await open_service() for _ in range(2)]
    target = "ipv4:" + ",".join(replica.target() for replica in replicas)
    options = channel_options(retry_unavailable=False)
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = chat_grpc.ChatServiceStub(channel)

        async def ask() -> bool:
            request = chat_pb.CreateChatCompletionRequest(spec=spec_of("x"))
            await stub.CreateChatCompletion(request, timeout=20, wait_for_ready=True)
            return all(replica.engine.requests for replica in replicas)

        async with asyncio.timeout(20):
            while not await ask():  # the second connection may take a moment
                pass
        before = [len(replica.engine.requests) for replica in replicas]
        for _ in range(20):
            await ask()
        after = [len(replica.engine.requests) for replica in replicas]
    assert [new - old for new, old in zip(after, before, strict=True)] == [10, 10]


@pytest.mark.full
async def test_a_call_to_a_peer_that_vanishes_ends(open_service) -> None:
    """As a machine without power: its connection stays open, and nothing comes from it."""
    service = await open_service(request_timeout_s=600)
    service.engine.hold_at = 2
    gone = asyncio.Event()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = service.target().partition(":")
        theirs, ours = await asyncio.open_connection(host, int(port))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(2**16):
                    if not gone.is_set():
                        sink.write(data)

        try:
            await asyncio.gather(pump(reader, ours), pump(theirs, writer))
        finally:
            ours.close()
            writer.close()

    proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
    async with proxy:
        target = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        options = channel_options(retry_unavailable=False)
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = chat_grpc.ChatServiceStub(channel)
            request = chat_pb.CreateChatCompletionRequest(spec=spec_of("hello"))
            call = asyncio.ensure_future(stub.CreateChatCompletion(request, timeout=300))
            await until(lambda: bool(service.engine.live))
            gone.set()
            begin = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - begin < 60
