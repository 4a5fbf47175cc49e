"""Clients that end their side of the connection behind their request, and read on: `nc`, `socat`, old tools."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

import h11
import pytest

from rest_adapter import half_closed
from rest_adapter.bounded_connection import BoundedConnection
from rest_adapter.http_protocol import BoundedHttpProtocol
from tests.rest_adapter.conftest import Adapter, wait_until
from tests.rest_adapter.raw_http import (
    CHAT,
    Answer,
    answers_of,
    chat_body,
    chunked,
    connect,
    head,
    in_chunks,
    read_to_end,
    with_length,
)


def half_close(adapter: Adapter, raw: bytes) -> socket.socket:
    client = connect(adapter)
    client.sendall(raw)
    client.shutdown(socket.SHUT_WR)
    return client


def answered(adapter: Adapter, raw: bytes, *methods: str) -> list[Answer]:
    with half_close(adapter, raw) as client:
        return answers_of(read_to_end(client), methods)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("text", ["quick", "slow 1.2"])
@pytest.mark.parametrize("size", [0, 300_000])
def test_the_answer_comes(adapter: Adapter, version: str, text: str, size: int) -> None:
    body = chat_body(text, metadata={"x": "y" * size})
    (answer,) = answered(adapter, with_length(body, version=version), "POST")
    assert (answer.status, answer.text) == (200, text)


def test_the_answer_to_chunks_comes(adapter: Adapter) -> None:
    (answer,) = answered(adapter, in_chunks(chat_body("in chunks")), "POST")
    assert answer.text == "in chunks"


def test_a_stream_comes_to_its_end(adapter: Adapter) -> None:
    (answer,) = answered(adapter, with_length(chat_body("piece by piece", stream=True)), "POST")
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_every_request_before_the_end_is_answered(adapter: Adapter) -> None:
    raw = head("GET", "/version") + with_length(chat_body("slow 0.7")) + with_length(chat_body("x"))
    answers = answered(adapter, raw, "GET", "POST", "POST")
    assert [answer.status for answer in answers] == [200] * 3
    assert answers[2].text == "x"


INCOMPLETE = {
    "head": (head("GET", "/version")[:-2], "within the head of the request"),
    "second head": (head("GET", "/version") * 2, "within the head of the request"),
    "body": (with_length(chat_body("cut"))[:-5], "content-length is"),
    "no body": (head("POST", CHAT, "content-length: 7"), "after 0 bytes: content-length is 7"),
    "chunks": (in_chunks(chat_body("cut"))[:-5], "the last chunk is missing"),
    "a chunk": (
        head("POST", CHAT, "transfer-encoding: chunked") + chunked([b"{" * 90])[:50],
        "the last chunk is missing",
    ),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_is_missing_is_told(adapter: Adapter, case: str) -> None:
    raw, text = INCOMPLETE[case]
    methods = ["GET"] if "head" in case else ["POST"]
    if case == "second head":
        raw, methods = raw[:-2], ["GET", "GET"]
    *_, answer = answered(adapter, raw, *methods)
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert text in answer.error["message"]
    wait_until(lambda: adapter.seen.running == 0)


@pytest.mark.parametrize("raw", [b"", b"\r\n", head("GET", "/version")])
def test_a_connection_without_an_open_request_is_closed(adapter: Adapter, raw: bytes) -> None:
    with half_close(adapter, raw) as client:
        received = read_to_end(client)
    assert received.startswith(b"HTTP/1.1 200 ") if len(raw) > 2 else received == b""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("after_s", [0, 0.8])
def test_a_client_that_leaves_while_it_waits_ends_its_work(
    adapter: Adapter, stream: bool, reset: bool, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_closed, "PROBE_EVERY_S", 0.5)
    client = half_close(adapter, with_length(chat_body("hang", stream=stream)))
    wait_until(lambda: adapter.seen.running == 1)
    time.sleep(after_s)
    if stream:
        client.recv(65536)  # what is not read lets the system reset the connection
    if reset:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    wait_until(lambda: adapter.seen.running == 0)
    assert adapter.seen.cancelled == 1


def test_only_clients_that_understand_it_get_an_interim_response(adapter: Adapter) -> None:
    for version, interim in (("1.1", b"HTTP/1.1 102 Processing\r\n\r\n"), ("1.0", b"")):
        with half_close(adapter, with_length(chat_body("slow 0.8"), version=version)) as client:
            assert read_to_end(client).startswith(interim + b"HTTP/1.1 200 OK\r\n")


def test_a_stream_that_pauses_has_only_comments_more(adapter: Adapter) -> None:
    with half_close(adapter, with_length(chat_body("slow 0.8", stream=True))) as client:
        (answer,) = answers_of(read_to_end(client), ["POST"])
    events = [event for event in answer.body.split(b"\n\n") if event and event[:1] != b":"]
    assert [event for event in events if not event.startswith(b"data: ")] == []
    assert events[-1] == b"data: [DONE]"


def test_an_early_answer_needs_no_interim_response(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_closed, "PROBE_AFTER_S", 5)
    with half_close(adapter, with_length(chat_body("slow 0.2"))) as client:
        assert read_to_end(client).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("kind", "pieces", "may_add"),
    [
        ("text/event-stream", [], True),
        ("text/event-stream", [b"data: 1\n\n"], True),
        ("text/event-stream", [b"data: 1\n\n", b"data: 2"], False),
        ("text/event-stream", [b"data: 1\n"], False),
        ("text/event-stream", [b"data: 1", b""], False),
        ("text/event-stream", [b"data: 1", b"2\n\n", b""], True),
        ("text/event-stream", [b"data: 1", b"2\n\n", b":\n\n"], True),
        ("application/json", [b"{}\n\n"], False),
    ],
)
def test_nothing_is_added_within_an_event(kind: str, pieces: list[bytes], may_add: bool) -> None:
    """Large events, and stored streams, are sent in pieces."""
    sent: list[bytes] = []
    conn = BoundedConnection()
    conn.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert isinstance(conn.next_event(), h11.Request)
    conn.send(h11.Response(status_code=200, headers=[("content-type", kind)]))
    for piece in pieces:
        conn.send(h11.Data(data=piece))
    protocol: Any = SimpleNamespace(
        conn=conn, scope={"http_version": "1.1"}, transport=SimpleNamespace(write=sent.append)
    )
    BoundedHttpProtocol._probe(protocol)
    assert bool(sent) == may_add
