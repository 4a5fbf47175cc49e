"""What happens when somebody goes away: a client, the engine, the whole product."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import time

import grpc
import pytest
import requests

from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.e2e.conftest import Served
from tests.support.images import draw


pytestmark = pytest.mark.both_backends


def long_spec(request_id: str = "") -> chat_pb.ChatCompletionSpec:
    """A request that runs until somebody stops it."""
    parts = [
        message_pb.Part(image=message_pb.Image(data=draw("red", "star").png)),
        message_pb.Part(text="Go on"),
    ]
    return chat_pb.ChatCompletionSpec(
        model="qwen-vl",
        request_id=request_id,
        messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=parts)],
        sampling=sampling_pb.SamplingOptions(
            temperature=0, max_tokens=3500, min_tokens=3500, ignore_eos=True
        ),
    )


def open_stream(chat: chat_grpc.ChatServiceStub, request_id: str = "") -> grpc._CallIterator:
    """Opens a long stream and waits for its first text."""
    stream = chat.StreamChatCompletion(
        chat_pb.StreamChatCompletionRequest(spec=long_spec(request_id)), timeout=120
    )
    for event in stream:
        if event.WhichOneof("event") == "delta":
            return stream
    raise AssertionError("the stream ended at once")


def test_grpc_client_that_goes_away_frees_its_pages(
    served: Served, chat: chat_grpc.ChatServiceStub
) -> None:
    stream = open_stream(chat)
    served.wait_busy()
    stream.cancel()
    assert served.wait_idle().load.kv_pages_used == 0


def test_rest_client_that_goes_away_frees_its_pages(served: Served) -> None:
    for stream in (True, False):
        body = json.dumps(
            {
                "model": "qwen-vl",
                "messages": [{"role": "user", "content": "Go on"}],
                "max_tokens": 3500,
                "min_tokens": 3500,
                "ignore_eos": True,
                "stream": stream,
            }
        ).encode()
        host, _, port = served.http.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(body)}\r\n\r\n".encode()
                + body
            )
            served.wait_busy()
        assert served.wait_idle().load.kv_pages_used == 0


def test_abort_ends_a_running_request(served: Served, chat: chat_grpc.ChatServiceStub) -> None:
    stream = open_stream(chat, "to-be-aborted")
    with served.channel() as channel:
        answer = admin_grpc.AdminServiceStub(channel).Abort(
            admin_pb.AbortRequest(request_ids=["to-be-aborted", "never-seen"]), timeout=10
        )
    assert list(answer.aborted_request_ids) == ["to-be-aborted"]
    assert list(answer.unknown_request_ids) == ["never-seen"]
    reasons = [event.finished.reason for event in stream if event.WhichOneof("event") == "finished"]
    assert reasons == [5]  # FINISH_REASON_ABORTED
    served.wait_idle()


def test_killed_engine_comes_back(served: Served, chat: chat_grpc.ChatServiceStub) -> None:
    before = served.info()
    streams = [open_stream(chat) for _ in range(4)]

    def outcome(stream: grpc._CallIterator) -> grpc.StatusCode:
        try:
            for _ in stream:
                pass
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(outcome, stream) for stream in streams]
        os.kill(before.engine_pid, signal.SIGKILL)
        assert [future.result(60) for future in waiting] == [grpc.StatusCode.UNAVAILABLE] * 4
    assert requests.get(f"{served.http}/health", timeout=10).status_code == 200
    deadline = time.monotonic() + 120
    while served.info().engine_restarts == before.engine_restarts:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    served.wait_ready()
    after = served.info()
    assert after.engine_pid != before.engine_pid
    request = chat_pb.CreateChatCompletionRequest(
        spec=chat_pb.ChatCompletionSpec(model="qwen-vl", messages=long_spec().messages)
    )
    assert chat.CreateChatCompletion(request, timeout=60).choices[0].text
    assert served.wait_idle().load.kv_pages_used == 0
