"""The body of a request: its speed, its content encoding, and the memory of all bodies together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
import contextlib
import gzip
import json
import select
import socket
import time
from typing import Any
import zlib

from hypothesis import given
from hypothesis import strategies as st
import pytest
import requests
from starlette.datastructures import Headers

from rest_adapter import body_budget
from rest_adapter.body import BodyLimits, RequestBody
from rest_adapter.body_budget import BodyBudget, Holding
from rest_adapter.content_encoding import Decoder, decoder_of
from rest_adapter.errors import ApiError
from rest_adapter.settings import AdapterSettings
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.rest_adapter.raw_http import (
    CHAT,
    answers_of,
    chat_body,
    connect,
    head,
    read_to_end,
    with_length,
)


MIB = 2**20


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without header": ("deflate", raw_deflate),
    "identity": ("identity", bytes),
}


def post_encoded(adapter: Adapter, encoding: str, data: bytes) -> requests.Response:
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    return requests.post(adapter.url + CHAT, data=data, headers=headers, timeout=30)


@pytest.mark.parametrize("case", ENCODINGS)
def test_a_compressed_body_is_read(adapter: Adapter, case: str) -> None:
    name, encode = ENCODINGS[case]
    response = post_encoded(adapter, name, encode(chat_body("squeezed " * 2000)))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"] == "squeezed " * 2000


@pytest.mark.parametrize("case", ["gzip", "deflate", "deflate without header"])
def test_a_small_body_that_becomes_large_is_refused(adapter: Adapter, case: str) -> None:
    name, encode = ENCODINGS[case]
    response = post_encoded(adapter, name, encode(bytes(64 * MIB)))
    assert response.status_code == 413
    assert "--max-body-mib" in response.json()["error"]["message"]


def test_members_of_gzip_are_one_body(adapter: Adapter) -> None:
    """Programs that compress in parallel write several."""
    body = chat_body("members")
    data = gzip.compress(body[:20]) + gzip.compress(b"") + gzip.compress(body[20:])
    assert post_encoded(adapter, "gzip", data).status_code == 200
    assert adapter.spec.messages[0].parts[0].text == "members"


def test_all_lines_of_the_encoding_count(adapter: Adapter) -> None:
    lines = ("content-encoding: gzip", "content-encoding: gzip")
    with connect(adapter) as connection:
        connection.sendall(with_length(gzip.compress(gzip.compress(chat_body())), *lines))
        (answer,) = answers_of(read_to_end(connection), ["POST"])
    assert answer.status == 415
    assert "gzip, gzip" in answer.error["message"]


@pytest.mark.parametrize("name", ["br", "zstd", "compress", "gzip, gzip", "nonsense"])
def test_an_unknown_encoding_is_refused_by_name(adapter: Adapter, name: str) -> None:
    response = post_encoded(adapter, name, b"anything")
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate"
    message = response.json()["error"]["message"]
    assert name in message
    assert "gzip" in message


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gzip.compress(chat_body(), mtime=0)[:-9], "cut off"),
        (gzip.compress(chat_body(), mtime=0) + b"more", "goes on"),
        (gzip.compress(chat_body(), mtime=0) + bytes(9), "goes on"),
        (gzip.compress(chat_body(), mtime=0) + gzip.compress(b" ", mtime=0)[:9], "cut off"),
        (gzip.compress(chat_body(), mtime=0) + gzip.compress(b"", mtime=0) * 1000, "256 members"),
        (chat_body(), "malformed"),
        (gzip.compress(chat_body(), mtime=0)[:-8] + b"12345678", "malformed"),
    ],
)
def test_a_broken_encoding_is_refused(adapter: Adapter, data: bytes, word: str) -> None:
    response = post_encoded(adapter, "gzip", data)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_encoding")
    assert word in response.json()["error"]["message"]


@given(st.binary(max_size=3000), st.integers(0, 300), st.integers(1, 400))
def test_pieces_of_any_size_are_decoded(begin: bytes, repeats: int, size: int) -> None:
    data = begin + b"0123456789" * repeats * 40
    for name, encode in ENCODINGS.values():
        decoder, packed = decoder_of(name), encode(data)
        if decoder is None:
            continue
        pieces = (packed[start : start + size] for start in range(0, len(packed), size))
        assert b"".join(out for piece in pieces for out in decoder.decode(piece)) == data
        decoder.finish()


def test_no_piece_is_large() -> None:
    pieces = [len(piece) for piece in Decoder("gzip").decode(gzip.compress(bytes(5 * MIB)))]
    assert sum(pieces) == 5 * MIB
    assert max(pieces) <= MIB


def drip(adapter: Adapter, data: bytes, *, piece: int, pause_s: float) -> bytes:
    """Sends a body at a steady rate; returns the response."""
    lines = ("connection: close", f"content-length: {len(data)}")
    with connect(adapter) as connection:
        connection.sendall(head("POST", CHAT, *lines))
        with contextlib.suppress(OSError):
            for start in range(0, len(data), piece):
                connection.sendall(data[start : start + piece])
                time.sleep(pause_s)
        return read_to_end(connection)


def test_a_slow_but_steady_body_is_served() -> None:
    """Takes longer than the longest silence, and more than twice the minimum rate."""
    with open_adapter(body_timeout_s=1.5, min_body_kib_per_s=4) as adapter:
        started = time.monotonic()
        raw = drip(adapter, chat_body("x" * 40_000), piece=1000, pause_s=0.08)
        assert time.monotonic() - started > 3
    (answer,) = answers_of(raw, ["POST"])
    assert answer.status == 200


@pytest.mark.parametrize(("piece", "pause_s"), [(1, 0.1), (20, 0.05), (10_000, 30.0)])
def test_a_body_below_the_minimum_rate_is_refused(piece: int, pause_s: float) -> None:
    with open_adapter(body_timeout_s=0.6, min_body_kib_per_s=16) as adapter:
        lines = ("connection: close", "content-length: 40000")
        with connect(adapter) as connection:
            connection.sendall(head("POST", CHAT, *lines))
            deadline = time.monotonic() + 15
            connection.settimeout(min(pause_s, 10))
            received = b""
            while not received and time.monotonic() < deadline:
                connection.sendall(b" " * piece)
                with contextlib.suppress(TimeoutError):
                    received = connection.recv(4096)
            connection.settimeout(10)
            received += read_to_end(connection)
        (answer,) = answers_of(received, ["POST"])
    assert (answer.status, answer.error["code"]) == (408, "timeout")
    for word in ("--body-timeout-s", "--min-body-kib-per-s", "0.6 s"):
        assert word in answer.error["message"]


@pytest.fixture(scope="module")
def tight() -> Iterator[Adapter]:
    with open_adapter(max_body_mib=3, body_budget_mib=4, body_timeout_s=15) as adapter:
        yield adapter


@contextlib.contextmanager
def uploads(adapter: Adapter, count: int, size: int) -> Iterator[list[socket.socket]]:
    """Clients that send a part of their body and then wait."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(adapter)) for _ in range(count)]
        for client in clients:
            client.sendall(head("POST", CHAT, f"content-length: {3 * MIB}") + b" " * size)
        yield clients


def large(adapter: Adapter) -> requests.Response:
    body = json.dumps({"model": "demo", "messages": [], "metadata": "x" * int(1.5 * MIB)})
    return requests.post(adapter.url + CHAT, data=body.encode(), timeout=30)


def test_bodies_that_are_being_sent_count_together(
    tight: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert large(tight).json()["error"]["param"] == "messages"
    budgets: list[BodyBudget] = []
    take = BodyBudget.take

    def noting(budget: BodyBudget, holding: Holding, count: int) -> None:
        take(budget, holding, count)
        budgets.append(budget)

    monkeypatch.setattr(BodyBudget, "take", noting)
    with uploads(tight, 2, int(1.2 * MIB)):
        # Before the adapter has read them, another large body would compete.
        wait_until(lambda: bool(budgets) and budgets[0].used_bytes == 2 * int(1.2 * MIB))
        refused = large(tight)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "--body-budget-mib" in refused.json()["error"]["message"]
        assert int(refused.headers["retry-after"]) >= 1
        for _ in range(5):
            assert tight.ask("small ones go on").status_code == 200
    wait_until(lambda: large(tight).status_code == 400)


def test_the_memory_of_a_request_is_held_until_its_end(tight: Adapter) -> None:
    image = "data:image/png;base64," + "A" * (2 * MIB)
    content = [
        {"type": "text", "text": "hang"},
        {"type": "image_url", "image_url": {"url": image}},
    ]
    messages = [{"role": "user", "content": content}]
    body = json.dumps({"model": "demo", "messages": messages}).encode()
    raw = head("POST", CHAT, f"content-length: {len(body)}") + body
    with connect(tight) as running:
        running.sendall(raw)
        wait_until(lambda: tight.seen.running == 1)
        assert large(tight).status_code == 429
    wait_until(lambda: large(tight).status_code == 400)


@pytest.fixture(scope="module")
def shared_room() -> Iterator[Adapter]:
    """Room for three large bodies, of which a caller, told apart by its host, may have two."""
    with open_adapter(max_body_mib=3, body_budget_mib=12, body_timeout_s=30) as adapter:
        yield adapter


def unfinished(data: bytes) -> bytes:
    """A compressed body that is decoded as far as it goes, but not complete."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    return head("POST", CHAT, "content-encoding: gzip", "content-length: 99999") + packed


@contextlib.contextmanager
def from_another_host(adapter: Adapter, pieces: list[bytes]) -> Iterator[list[socket.socket]]:
    """Connections that send a piece each and then nothing."""
    with contextlib.ExitStack() as stack:
        clients = []
        for piece in pieces:
            address, source = ("127.0.0.1", adapter.port), ("127.0.0.2", 0)
            client = socket.create_connection(address, 10, source_address=source)
            clients.append(stack.enter_context(client))
            client.sendall(piece)
        yield clients


@pytest.mark.parametrize("size", [3 * MIB - 1000, MIB - 1000])
def test_unfinished_bodies_of_one_caller_leave_room_for_others(
    shared_room: Adapter, size: int
) -> None:
    """A KiB on the wire becomes a MiB; all of them came at once and are not stalled."""
    with from_another_host(shared_room, [unfinished(b" " * size)] * 16) as clients:
        refused, _, _ = select.select(clients, (), (), 10)  # their caller has its share
        assert b" 429 " in refused[0].recv(100)
        for _ in range(3):
            assert large(shared_room).json()["error"]["param"] == "messages"
            assert shared_room.ask("small ones as well").status_code == 200


def test_a_stalled_body_gives_way_to_others_of_its_caller(
    shared_room: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_budget, "STALLED_S", 0.2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(shared_room)) for _ in range(2)]
        for client in clients:
            client.sendall(unfinished(b" " * (3 * MIB - 1000)))
        wait_until(lambda: large(shared_room).status_code == 400)
        clients[0].settimeout(10)
        (answer,) = answers_of(read_to_end(clients[0]), ["POST"])
    assert answer.status == 429
    assert "gave way to others" in answer.error["message"]


async def test_a_body_may_give_way_in_the_moment_of_its_timeout() -> None:
    """Which has been noted then, but not yet told."""
    budget = BodyBudget(12 * MIB, 3 * MIB)
    limits = BodyLimits(max_bytes=3 * MIB, silence_s=0.05, min_bytes_per_s=1, budget=budget)
    pieces = [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.Event().wait()

    headers = Headers({"transfer-encoding": "chunked"})
    reading = asyncio.create_task(RequestBody(headers, receive, limits, {}).read())
    await asyncio.sleep(0)
    [holding] = budget._holdings
    loop = asyncio.get_running_loop()
    problems: list[Any] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    assert holding.give_way is not None
    loop.call_later(0.06, holding.give_way)
    time.sleep(0.1)  # noqa: ASYNC251 - both are due in the same turn of the loop
    with pytest.raises(ApiError, match="gave way"):
        await reading
    assert not problems
    assert budget.used_bytes == 0


def test_what_adds_nothing_to_a_body_does_not_keep_it() -> None:
    """Empty blocks of deflate, faster than the minimum rate."""
    with open_adapter(body_timeout_s=0.5, min_body_kib_per_s=1) as adapter:
        packer = zlib.compressobj(9, wbits=31)
        with connect(adapter) as connection:
            connection.sendall(
                head("POST", CHAT, "content-encoding: gzip", "content-length: 9999999")
                + packer.compress(b" " * MIB)
                + packer.flush(zlib.Z_SYNC_FLUSH)
            )
            deadline = time.monotonic() + 15
            connection.settimeout(0.05)
            received = b""
            while not received and time.monotonic() < deadline:
                connection.sendall(b"\0\0\0\xff\xff" * 100)
                with contextlib.suppress(TimeoutError):
                    received = connection.recv(4096)
    assert b" 408 " in received


@pytest.mark.parametrize("flags", [{"body_budget_mib": "50"}, {"max_body_mib": "200"}])
def test_the_budget_must_hold_a_body(flags: dict[str, str]) -> None:
    expected = r"--body-budget-mib=\d+ \(QWENVL_BODY_BUDGET_MIB\): .* must be at least 4/3 of --max-body-mib, which is"
    with pytest.raises(SystemExit, match=expected):
        AdapterSettings.load(flags, {})


def test_origins_are_checked_at_the_start() -> None:
    with pytest.raises(
        SystemExit, match=r"--allowed-origins=local,chat.example .*: 'chat.example' is not an"
    ):
        AdapterSettings.load({}, {"QWENVL_ALLOWED_ORIGINS": "local,chat.example"})
