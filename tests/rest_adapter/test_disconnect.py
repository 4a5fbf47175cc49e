"""A client that goes away ends its work in the service, whatever it was waiting for."""

from __future__ import annotations

import contextlib
import json
import random
import socket

import pytest

from tests.rest_adapter.conftest import Adapter, wait_until


def open_request(adapter: Adapter, question: str, *, stream: bool) -> socket.socket:
    body = json.dumps(
        {
            "model": "demo",
            "stream": stream,
            "messages": [{"role": "user", "content": question}],
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    client = socket.create_connection(("127.0.0.1", adapter.port), timeout=15)
    client.sendall(head + body)
    return client


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_goes_away_cancels_the_call(adapter: Adapter, stream: bool) -> None:
    client = open_request(adapter, "hang", stream=stream)
    wait_until(lambda: adapter.seen.running == 1)
    client.close()
    wait_until(lambda: adapter.seen.running == 0)
    assert adapter.seen.cancelled == 1


def test_client_that_half_reads_a_stream(adapter: Adapter) -> None:
    client = open_request(adapter, "hang", stream=True)
    assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    client.close()
    wait_until(lambda: adapter.seen.cancelled == 1)


def test_reset_connection(adapter: Adapter) -> None:
    client = open_request(adapter, "hang", stream=True)
    wait_until(lambda: adapter.seen.running == 1)
    # Linger of zero: the kernel sends RST instead of FIN.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    wait_until(lambda: adapter.seen.running == 0)


def test_client_that_goes_away_while_it_writes(adapter: Adapter) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{"
    with socket.create_connection(("127.0.0.1", adapter.port), timeout=15) as client:
        client.sendall(head)
    assert adapter.ask().status_code == 200
    assert adapter.seen.calls == 1


def test_many_clients_that_go_away_anywhere(adapter: Adapter) -> None:
    """Whatever the moment: nothing keeps running, and the next client is served."""
    moments = random.Random(7)
    for number in range(60):
        client = open_request(adapter, f"x{'y' * 200}", stream=number % 2 == 0)
        client.settimeout(0.2)  # nothing comes behind a whole answer
        with contextlib.suppress(TimeoutError):
            for _ in range(moments.randrange(4)):
                client.recv(moments.choice((1, 64, 4096)))
        client.close()
    wait_until(lambda: adapter.seen.running == 0)
    assert adapter.ask("still here").json()["choices"][0]["message"]["content"] == "still here"


def test_slow_reader_does_not_slow_the_others(adapter: Adapter) -> None:
    slow = open_request(adapter, "z" * 20_000, stream=True)
    assert slow.recv(10)
    for _ in range(3):
        assert adapter.ask("quick", stream=True).text.endswith("data: [DONE]\n\n")
    slow.close()
    wait_until(lambda: adapter.seen.running == 0)
