"""HTTP over plain sockets, for requests that no client library sends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import json
import socket
from typing import Any

import h11

from tests.rest_adapter.conftest import Adapter


CHAT = "/v1/chat/completions"


def chat_body(text: str = "hello", **fields: Any) -> bytes:
    messages = [{"role": "user", "content": text}]
    return json.dumps({"model": "demo", "messages": messages} | fields).encode()


def head(
    method: str = "POST", path: str = CHAT, *lines: str, version: str = "1.1", host: str = "x"
) -> bytes:
    return "\r\n".join(
        [f"{method} {path} HTTP/{version}", f"host: {host}", *lines, "", ""]
    ).encode()


def with_length(body: bytes, *lines: str, **options: Any) -> bytes:
    return head("POST", CHAT, *lines, f"content-length: {len(body)}", **options) + body


def chunked(pieces: Iterable[bytes], trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return chunks + b"0\r\n" + trailers + b"\r\n"


def in_chunks(body: bytes, *lines: str, size: int = 16, trailers: bytes = b"") -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return head("POST", CHAT, *lines, "transfer-encoding: chunked") + chunked(pieces, trailers)


def connect(adapter: Adapter, timeout_s: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", adapter.port), timeout=timeout_s)


def read_to_end(connection: socket.socket) -> bytes:
    """All bytes until the server closes; a reset ends them too."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


class Answer:
    """One response."""

    def __init__(self, response: h11.Response, body: bytes) -> None:
        self.status = response.status_code
        self.headers = {name.decode(): value.decode() for name, value in response.headers}
        self.body = body

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error

    @property
    def text(self) -> str:
        """What the fake service answered."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"])


def answers_of(raw: bytes, methods: Sequence[str]) -> list[Answer]:
    """The responses in `raw` to requests with these methods; fails if there are more, or bytes that are none."""
    found = []
    for method in methods:
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(raw)
        client.receive_data(b"") if not raw else None
        response, body = None, b""
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                client.receive_data(b"")
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
        assert response is not None
        found.append(Answer(response, body))
        raw = client.trailing_data[0]
    assert raw == b""
    return found


def ask_raw(adapter: Adapter, *segments: bytes, methods: Sequence[str] = ("POST",)) -> list[Answer]:
    """Sends segments and a last request for the connection to be closed, and reads all responses."""
    last = head("GET", "/version", "connection: close")
    with connect(adapter) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in (*segments, last):
            connection.sendall(segment)
        return answers_of(read_to_end(connection), [*methods, "GET"])
