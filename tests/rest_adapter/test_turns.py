"""No connection keeps the event loop, the descriptors or the memory from the others, whatever it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import contextlib
import functools
import socket
import threading
import time
from types import SimpleNamespace
from unittest import mock

import h11
import pytest
import requests
import uvicorn
from uvicorn.server import ServerState

from rest_adapter import http_protocol
from rest_adapter.app import create_app
from rest_adapter.bounded_connection import BoundedConnection
from rest_adapter.connections import IDLE_S, Connections
from rest_adapter.settings import AdapterSettings
from rest_adapter.turns import MAX_AT_ONCE, Turns
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.rest_adapter.raw_http import (
    CHAT,
    answers_of,
    chat_body,
    chunked,
    connect,
    head,
    read_to_end,
    with_length,
)


class Load:
    """Counts the events of HTTP, and the requests among them, in each iteration of the event loop."""

    def __init__(self) -> None:
        self.events = self.requests = 0
        self.all_events = self.max_events = self.max_requests = 0

    def count(self, event: object) -> None:
        if self.events == 0:
            asyncio.get_running_loop().call_soon(self._end)
        self.events += 1
        self.requests += isinstance(event, h11.Request)

    def _end(self) -> None:
        self.all_events += self.events
        self.max_events = max(self.max_events, self.events)
        self.max_requests = max(self.max_requests, self.requests)
        self.events = self.requests = 0


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    load = Load()
    next_event = BoundedConnection.next_event

    def counted(connection: BoundedConnection) -> object:
        event = next_event(connection)
        load.count(event)
        return event

    monkeypatch.setattr(BoundedConnection, "next_event", counted)
    return load


CHUNKS = head("POST", CHAT, "transfer-encoding: chunked") + chunked([b" " * 257] * 3000)
EXTENSIONS = (
    head("POST", CHAT, "transfer-encoding: chunked")
    + (b"101;%b\r\n%b\r\n" % (b"a" * 40, b" " * 257)) * 3000
    + b"0\r\n\r\n"
)


@pytest.mark.parametrize("flood", [CHUNKS, EXTENSIONS], ids=["chunks", "extensions"])
def test_what_is_dear_to_parse_is_parsed_in_slices(load: Load, flood: bytes) -> None:
    with open_adapter() as adapter:
        connections = [connect(adapter) for _ in range(4)]
        threads = [threading.Thread(target=each.sendall, args=(flood,)) for each in connections]
        for thread in threads:
            thread.start()
        for thread, connection in zip(threads, connections, strict=True):
            thread.join()
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")  # white space is not JSON
            connection.close()
        assert adapter.ask().status_code == 200
    assert load.all_events > 12_000
    # Of one read of a socket alone, 1,000 chunks would be handled at once.
    assert load.max_events < 600


def test_pipelined_requests_are_begun_one_by_one(load: Load) -> None:
    count = 300
    with open_adapter() as adapter:
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(connect(adapter)) for _ in range(4)]
            for connection in connections:
                last = head("GET", "/version", "connection: close")
                connection.sendall(head("GET", "/health") * count + last)
            for connection in connections:
                answers = answers_of(read_to_end(connection), ["GET"] * (count + 1))
                assert {answer.status for answer in answers} == {200}
        assert adapter.ask().status_code == 200
    assert load.max_requests <= 6


def test_turns_share_the_time() -> None:
    """Slow work ends an iteration, a begun request too; all get their turn in order."""

    async def run() -> list[str]:
        now = 0.0
        loop, turns, order = asyncio.get_running_loop(), Turns(lambda: now), []

        def work(name: str, seconds: float, begins: bool) -> bool:
            nonlocal now
            order.append(name)
            now += seconds
            return begins

        turns.wait(lambda: work("slow", 0.01, False))
        turns.wait(lambda: work("request", 0, True))
        turns.wait(lambda: work("a", 0, False))
        turns.wait(lambda: work("b", 0, False))
        for _ in range(4):
            loop.call_soon(order.append, "|")
            await asyncio.sleep(0)
        return order

    assert "".join(asyncio.run(run())).startswith("slow|request|ab|")


def test_a_failure_in_a_turn_does_not_stop_the_others() -> None:
    async def run() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        turns = Turns()
        done: list[str] = []

        def note(name: str) -> bool:
            done.append(name)
            return False

        turns.wait(lambda: bool(1 / 0))
        turns.wait(functools.partial(note, "next"))
        await asyncio.sleep(0.05)
        return done

    assert asyncio.run(run()) == ["next"]


@pytest.mark.parametrize("extra", [b"\r\n", b"\r\n\r\n", head("GET", "/health") * 3], ids=repr)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_noticed_behind_what_follows(
    adapter: Adapter, extra: bytes, stream: bool
) -> None:
    """Old clients send a line break after a body; reading must not stop there."""
    with connect(adapter) as connection:
        connection.sendall(with_length(chat_body("hang", stream=stream)))
        wait_until(lambda: adapter.seen.running == 1)
        connection.sendall(extra)
        time.sleep(0.2)
    wait_until(lambda: adapter.seen.running == 0)
    assert adapter.seen.cancelled == 1


@contextlib.contextmanager
def not_reading(adapter: Adapter) -> Iterator[socket.socket]:
    """A connection with a small window."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(120)
        connection.connect(("127.0.0.1", adapter.port))
        yield connection


def test_a_client_that_never_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.5)
    cut = threading.Event()
    lost = http_protocol.BoundedHttpProtocol.connection_lost

    def noting(protocol: http_protocol.BoundedHttpProtocol, error: Exception | None) -> None:
        lost(protocol, error)
        cut.set()

    monkeypatch.setattr(http_protocol.BoundedHttpProtocol, "connection_lost", noting)
    with open_adapter() as adapter, not_reading(adapter) as connection:
        connection.sendall(with_length(chat_body("z" * 60_000, stream=True), "connection: close"))
        wait_until(lambda: adapter.seen.running == 1)
        wait_until(lambda: adapter.seen.running == 0, timeout_s=30)  # gRPC takes all events
        assert cut.wait(20)
        assert b"[DONE]" not in read_to_end(connection)


def test_answers_that_nobody_reads_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.5)
    with (
        open_adapter() as adapter,
        not_reading(adapter) as connection,
        pytest.raises(ConnectionError),
    ):
        connection.sendall(head("GET", "/nothing") * 300_000)


async def test_stopping_does_not_wait_for_a_client_that_never_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 0.01)
    config = uvicorn.Config(create_app(AdapterSettings()), log_config=None)
    config.load()
    protocol = http_protocol.BoundedHttpProtocol(config, ServerState(), {})
    # Fewer bytes than asyncio says anything about.
    transport = mock.Mock(spec=asyncio.Transport, **{"get_write_buffer_size.return_value": 1000})
    transport.get_extra_info.return_value = None
    protocol.connection_made(transport)
    protocol.shutdown()
    await asyncio.sleep(0.05)
    transport.close.assert_called_once_with()
    transport.abort.assert_called_once_with()


def test_a_slow_reader_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "WRITE_TIMEOUT_S", 2.0)
    with open_adapter() as adapter, not_reading(adapter) as connection:
        connection.sendall(with_length(chat_body("z" * 6000, stream=True), "connection: close"))
        received = b""
        while data := connection.recv(16 * 1024):
            received += data
            time.sleep(0.005)
    assert received.count(b"data: ") > 6000
    assert b"[DONE]" in received


def test_idle_connections_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rest_adapter.app.MAX_CONNECTIONS", 8)
    with (
        open_adapter() as adapter,
        contextlib.ExitStack() as stack,
        requests.Session() as neighbour,
    ):
        assert neighbour.get(f"{adapter.url}/health", timeout=20).status_code == 200
        stream = stack.enter_context(connect(adapter))
        stream.sendall(with_length(chat_body("slow 2", stream=True), "connection: close"))
        wait_until(lambda: adapter.seen.running == 1)
        idle = [stack.enter_context(connect(adapter)) for _ in range(40)]
        wait_until(lambda: idle[0].recv(1) == b"")
        assert requests.get(f"{adapter.url}/health", timeout=20).status_code == 200
        assert neighbour.get(f"{adapter.url}/health", timeout=20).status_code == 200
        assert b"[DONE]" in read_to_end(stream)


def test_connections_in_use_are_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("rest_adapter.connections.time", SimpleNamespace(monotonic=lambda: now))
    closed: list[str] = []
    connections = Connections(2)
    for name in ("busy", "idle"):
        assert connections.add(name, functools.partial(closed.append, name))
        connections.set_busy(name)
        assert connections.set_caller(name, "key")
    assert not connections.add("new", lambda: None)
    connections.set_idle("idle")
    now = IDLE_S - 1
    assert not connections.add("new", lambda: None)
    now = IDLE_S
    assert connections.add("new", lambda: closed.append("new"))
    assert connections.add("newer", lambda: None)
    assert closed == ["idle", "new"]
    connections.remove("newer")
    assert connections.add("last", lambda: None)
    assert closed == ["idle", "new"]


class Door:
    """Connections, and which of them were closed to make room."""

    def __init__(self, maximum: int) -> None:
        self.connections = Connections(maximum)
        self.closed: list[str] = []

    def ask(self, name: str, caller: str | None) -> bool:
        """A new connection with a request; None = of a stranger."""
        if not self.connections.add(name, functools.partial(self.closed.append, name)):
            return False
        self.connections.set_busy(name)
        if caller is None or self.connections.set_caller(name, caller):
            return True
        self.connections.remove(name)
        return False


def test_idle_connections_make_room_before_those_with_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("rest_adapter.connections.time", SimpleNamespace(monotonic=lambda: now))
    door = Door(16)
    assert all(door.ask(f"{number}", "greedy") for number in range(14))
    for number in (3, 5):
        door.connections.set_idle(f"{number}")
        now += 1.0
    now = IDLE_S
    assert door.ask("other", "other")
    assert door.closed == ["3"]
    assert not door.ask("more", "greedy"), "5 is not idle for long enough"
    now += 1.0
    assert door.ask("more", "greedy")
    assert door.closed == ["3", "5"]


def test_strangers_make_room_though_their_requests_run() -> None:
    door = Door(16)
    assert door.ask("mine", "key")
    assert all(door.ask(f"stranger {number}", None) for number in range(40))
    assert door.closed == [f"stranger {number}" for number in range(25)]


def test_a_caller_with_all_connections_makes_room_for_others() -> None:
    door = Door(16)
    assert [door.ask(f"greedy {number}", "greedy") for number in range(16)] == [True] * 14 + [
        False
    ] * 2
    assert door.ask("modest", "modest")
    assert door.closed == ["greedy 13"]
    assert all(door.ask(f"modest {number}", "modest") for number in range(6))
    assert not door.ask("one more", "modest"), "it has its share"
    door.connections.remove("greedy 0")
    assert door.ask("greedy again", "greedy")


def test_a_connection_may_serve_several_callers() -> None:
    door = Door(16)
    for caller in ("a", "b", "a"):
        assert door.ask("gateway", caller)
    assert all(door.ask(f"{number}", "c") for number in range(13))
    door.connections.remove("gateway")
    assert not door.connections._of_caller.keys() - {"c"}


async def test_of_very_many_connections_with_few_bytes_most_wait_for_their_turn() -> None:
    turns = Turns()
    for _ in range(3):
        assert sum(turns.may_go_first() for _ in range(1000)) == MAX_AT_ONCE
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_callers_take_turns() -> None:
    turns, order = Turns(), []

    def parse(name: str) -> bool:
        order.append(name)
        return True

    for _ in range(100):
        turns.wait(functools.partial(parse, "crowd"), "crowd")
    await asyncio.sleep(0)
    turns.wait(functools.partial(parse, "other"), "other")
    turns.wait(functools.partial(parse, "unknown"))
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(order) == 102
    assert max(order.index("other"), order.index("unknown")) < 6
