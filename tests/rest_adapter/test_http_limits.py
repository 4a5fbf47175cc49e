"""Bodies and heads that are too large, too slow or never end."""

from __future__ import annotations

from collections.abc import Iterator
import socket
import time

import pytest
import requests

from rest_adapter import http_protocol
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.raw_http import chat_body, with_length
from tests.rest_adapter.scripted_answers import script


def connect(adapter: Adapter) -> socket.socket:
    return socket.create_connection(("127.0.0.1", adapter.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def test_body_over_the_limit_is_refused(adapter: Adapter) -> None:
    response = adapter.post(b"A" * (5 * 2**20))
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert adapter.ask().status_code == 200


def test_body_over_the_limit_without_content_length(adapter: Adapter) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(6):
            yield b"A" * 2**20

    response = requests.post(f"{adapter.url}/v1/chat/completions", data=pieces(), timeout=20)
    assert response.status_code == 413
    assert adapter.ask().status_code == 200


def test_endless_body_is_cut_off(adapter: Adapter) -> None:
    with connect(adapter) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 64 * 2**20:
                connection.sendall(b"100000\r\n" + b"A" * 2**20 + b"\r\n")
                sent += 2**20
        except OSError:
            pass
        assert sent < 32 * 2**20
    assert adapter.ask().status_code == 200


def test_huge_content_length_is_not_believed(adapter: Adapter) -> None:
    with connect(adapter) as connection:
        connection.sendall(HEAD + b"content-length: 99999999999\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 413")


def test_slow_body(adapter: Adapter) -> None:
    with connect(adapter) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"timeout"' in answer


def test_chunked_body_is_read(adapter: Adapter) -> None:
    body = b'{"model":"demo","messages":[{"role":"user","content":"x"}]}'

    def pieces() -> Iterator[bytes]:
        for position in range(0, len(body), 7):
            yield body[position : position + 7]

    response = requests.post(f"{adapter.url}/v1/chat/completions", data=pieces(), timeout=20)
    assert response.status_code == 200


def test_client_that_leaves_within_its_body(adapter: Adapter) -> None:
    with connect(adapter) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
    assert adapter.ask().status_code == 200


def test_endless_head(adapter: Adapter) -> None:
    with connect(adapter) as connection:
        sent = 0
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\n")
            while sent < 8 * 2**20:
                connection.sendall(b"x-a: " + b"A" * 4096 + b"\r\n")
                sent += 4096
        except OSError:
            pass
        assert sent < 8 * 2**20


def test_slow_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    with open_adapter() as adapter, connect(adapter) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost:")
        assert read_all(connection) == b""
        assert adapter.ask("slow 0.6").status_code == 200


def test_a_steady_reader_is_not_cut_for_what_the_system_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself the system took 4 MiB of an answer, and no more until more than 1 MiB of them had been read."""
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.3)
    count, rate = 6 * 2**20, 3 * 2**20
    with open_adapter(max_text_mib=16) as adapter, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        client.settimeout(20)
        client.connect(("127.0.0.1", adapter.port))
        client.sendall(with_length(chat_body(script("x" * count)), "connection: close"))
        begin, received = time.monotonic(), 0
        while data := client.recv(32 * 1024):
            if not received:
                begin = time.monotonic()
            received += len(data)
            time.sleep(max(0.0, begin + received / rate - time.monotonic()))
    assert received > count
