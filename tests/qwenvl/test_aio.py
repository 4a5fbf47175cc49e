"""How requests become bytes, which must not take long in the event loop."""

from __future__ import annotations

import threading

import pytest

from qwenvl import aio
from qwenvl.aio import AsyncService
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.testing import FakeServer
from tests.grpc_api.asking import image_part, spec_of


SIZES = (0, 1, 100, 127, 128, 2**14 - 9, 2**14, 2**21)


@pytest.mark.parametrize("size", SIZES)
def test_a_request_is_what_protobuf_writes(size: int) -> None:
    for spec in (spec_of("x" * size), spec_of(image_part(bytes(size)), "x")):
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        assert aio._request_of(spec) == request.SerializeToString()


def test_a_request_without_fields_is_what_protobuf_writes() -> None:
    spec = chat_pb.ChatCompletionSpec()
    request = chat_pb.CreateChatCompletionRequest(spec=spec)
    assert aio._request_of(spec) == request.SerializeToString()


async def test_only_large_requests_are_serialised_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[bool] = []
    serialise = aio._request_of

    def noting(spec: chat_pb.ChatCompletionSpec) -> bytes:
        threads.append(threading.current_thread() is threading.main_thread())
        return serialise(spec)

    monkeypatch.setattr(aio, "_request_of", noting)
    with FakeServer() as server:
        service = AsyncService(server.target)
        try:
            for size in (0, 1000, 2**23):
                spec = spec_of(image_part(bytes(10)), "hello", model="fake")
                await service.create_chat(spec, spec_bytes=size)
        finally:
            await service.close()
    assert threads == [True, True, False]
