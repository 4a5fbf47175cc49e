"""Who goes away stops the work; the server's own end finishes it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import requests

from tests.rest_adapter.conftest import Door, wait_until


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_cancels_the_call(door: Door, stream: bool) -> None:
    body = json.dumps(
        {"model": "demo", "messages": [{"role": "user", "content": "hang"}], "stream": stream}
    ).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    with socket.create_connection(("127.0.0.1", door.port), timeout=10) as connection:
        connection.sendall(head + body)
        wait_until(lambda: door.seen.running == 1)
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    wait_until(lambda: door.seen.running == 0)
    assert door.seen.cancelled == 1
    assert door.ask().status_code == 200


def test_answered_requests_cancel_nothing(door: Door) -> None:
    for stream in (True, False):
        assert door.ask(stream=stream).status_code == 200
    wait_until(lambda: door.seen.running == 0)
    assert door.seen.cancelled == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sigterm_finishes_streams(door: Door) -> None:
    """The command itself, against the service behind the shared door."""
    port = free_port()
    arguments = ["--http-address", f"127.0.0.1:{port}", "--grpc-target", door.grpc_target]
    process = subprocess.Popen(
        [sys.executable, "-m", "rest_adapter", *arguments], env=os.environ, stderr=subprocess.PIPE
    )
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return requests.get(f"{url}/health", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        wait_until(is_up, 60)
        body = {
            "model": "demo",
            "messages": [{"role": "user", "content": "slow 1.5"}],
            "stream": True,
        }
        with requests.post(
            f"{url}/v1/chat/completions", json=body, stream=True, timeout=30
        ) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == [b"data: [DONE]", b""] or rest[-1] == b"data: [DONE]"
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(10)
    assert process.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines()]
    access = [line for line in lines if line["logger"] == "rest_adapter.access"]
    assert [line["path"] for line in access] == ["/v1/chat/completions"]
