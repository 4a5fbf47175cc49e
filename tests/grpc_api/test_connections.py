"""Connections that do nothing make room for new ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
import contextlib
from pathlib import Path
import socket

import pytest

from inference_service.grpc_api import connections as module
from inference_service.grpc_api.connections import Connections
from tests.grpc_api.asking import until


MAXIMUM = 6
UNREAD = 2**25

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="not Linux")


class Address:
    """A listening socket, and the connections to it."""

    def __init__(self, family: socket.AddressFamily, host: str) -> None:
        self.listener = socket.create_server((host, 0), family=family)
        self.port = self.listener.getsockname()[1]
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def connect(self, count: int) -> list[str]:
        """Further connections, as gRPC writes them."""
        peers = []
        for _ in range(count):
            client = socket.socket(self.listener.family)
            client.connect(self.listener.getsockname()[:2])
            self.clients.append(client)
            one, (host, port, *_) = self.listener.accept()
            self.accepted.append(one)
            peers.append(f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}")
        return peers

    def open(self) -> list[int]:
        """The indices of the connections that are open."""
        for client in self.clients:
            client.settimeout(0.0)
        found = []
        for index, client in enumerate(self.clients):
            try:
                client.recv(1)
            except BlockingIOError:
                found.append(index)
        return found

    def close(self) -> None:
        for one in (self.listener, *self.clients, *self.accepted):
            one.close()


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def address(request: pytest.FixtureRequest) -> Iterator[Address]:
    family, host = request.param
    try:
        address = Address(family, host)
    except OSError:
        pytest.skip("no IPv6")
    yield address
    address.close()


@contextlib.asynccontextmanager
async def watching(
    connections: Connections,
    address: Address,
    monkeypatch: pytest.MonkeyPatch,
    left: int = MAXIMUM,
) -> AsyncIterator[None]:
    """Watches them until so many are left, and a little longer, in which one too many would be closed."""
    monkeypatch.setattr(module, "_CHECK_EVERY_S", 0.01)
    watch = asyncio.create_task(connections.watch({"grpc": address.port}))
    yield
    await until(lambda: len(address.open()) <= left)
    await asyncio.sleep(0.2)
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch


async def test_connections_without_a_call_make_room(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    for peer in address.connect(4):
        with connections.used(peer):
            pass
    async with watching(connections, address, monkeypatch):
        address.connect(5)
    assert len(address.open()) == MAXIMUM
    assert set(range(4)) <= set(address.open())


async def test_running_calls_are_not_cut_within_a_share(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    with contextlib.ExitStack() as calls:
        for number, peer in enumerate(address.connect(9)):
            calls.enter_context(connections.used(peer, f"caller {number}"))
        async with watching(connections, address, monkeypatch, left=9):
            address.connect(1)
    assert address.open() == [*range(9)]


async def test_a_caller_with_all_connections_makes_room(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    with contextlib.ExitStack() as calls:
        for number, peer in enumerate(address.connect(MAXIMUM + 3)):
            calls.enter_context(connections.used(peer, "greedy" if number else "modest"))
        async with watching(connections, address, monkeypatch):
            pass
    assert address.open() == [*range(MAXIMUM)]


async def test_only_the_caller_with_the_most_makes_room_and_no_more_than_needed(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    with contextlib.ExitStack() as calls:
        peers = address.connect(MAXIMUM + 2)
        for number, peer in enumerate(peers):
            caller = "other" if number < MAXIMUM // 2 else "greedy"
            calls.enter_context(connections.used(peer, caller))
        async with watching(connections, address, monkeypatch):
            pass
    assert address.open() == [*range(MAXIMUM)]


async def test_of_those_that_have_been_used_the_ones_idle_for_longest_make_room(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    peers = address.connect(8)
    for index in (2, 0, 1, 3, 4, 5, 6, 7):
        with connections.used(peers[index]):
            await asyncio.sleep(0.002)
    async with watching(connections, address, monkeypatch):
        pass
    assert address.open() == [1, 3, 4, 5, 6, 7]


async def test_other_sockets_are_left_alone(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    other = Address(address.listener.family, address.listener.getsockname()[0])
    other.connect(9)
    async with watching(connections, address, monkeypatch):
        address.connect(MAXIMUM)
    assert len(other.open()) == 9
    assert len(address.open()) == MAXIMUM
    other.close()


async def test_what_is_known_of_closed_connections_is_forgotten(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    for number in range(1000):
        with connections.used(f"ipv4:192.0.2.1:{number}"):
            pass
    async with watching(connections, address, monkeypatch):
        await until(lambda: len(connections._uses) <= MAXIMUM)


ADAPTER = "ipv4:10.0.0.1:4000"


def waiting_at_once(connections: Connections, peer: str, *, has_key: bool = True) -> int:
    """How many of a thousand refused calls may wait."""
    with contextlib.ExitStack() as stack:
        return sum(
            stack.enter_context(connections.waiting(peer, has_key=has_key)) for _ in range(1000)
        )


def used_by(connections: Connections, peer: str, *callers: str | None) -> None:
    for caller in callers:
        with connections.used(peer, caller):
            pass


@pytest.mark.parametrize(
    ("callers", "has_key", "count"),
    [
        (("a", "b"), True, module.MAX_WAITING),
        (("a", "b", "b", "b"), True, module.MAX_WAITING),
        ((None,), True, module.MAX_WAITING),  # nobody knows whose they are
        (("a",), False, module.MAX_WAITING),  # strangers that come through an adapter
        (("a", "a"), True, 1000),  # its own connection
        ((), False, 1000),
    ],
)
def test_refused_calls_leave_streams_of_a_shared_connection_to_others(
    callers: tuple[str | None, ...], has_key: bool, count: int
) -> None:
    connections = Connections(MAXIMUM, UNREAD)
    used_by(connections, ADAPTER, *callers)
    for _ in range(2):  # they have ended
        assert waiting_at_once(connections, ADAPTER, has_key=has_key) == count
    assert not connections._waiting


def test_connections_wait_apart() -> None:
    connections = Connections(MAXIMUM, UNREAD)
    other = "ipv4:10.0.0.2:4000"
    for peer in (ADAPTER, other):
        used_by(connections, peer, "a", "b")
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connections.waiting(ADAPTER, has_key=True))
        assert waiting_at_once(connections, other) == module.MAX_WAITING


KIB, MIB = 2**10, 2**20


class Unread:
    """Answers that were not read, of some callers over some connections."""

    def __init__(self, peers: list[str]) -> None:
        self.connections = Connections(MAXIMUM, UNREAD)
        self.peers = peers
        self.writing: list[asyncio.Future[None]] = []

    def add(self, connection: int, caller: str | None, count: int, num_bytes: int) -> None:
        for _ in range(count):
            self.writing.append(asyncio.get_running_loop().create_future())
            self.connections.unread(self.peers[connection], caller, num_bytes, self.writing[-1])

    def to_close(self) -> list[int]:
        found = self.connections._with_most_unread()
        return [number for number, peer in enumerate(self.peers) if module._address(peer) in found]


PEERS = [f"ipv4:10.0.0.{number % 4}:{number}" for number in range(64)]
MODEST = 40


@pytest.mark.parametrize("callers", [["one"], ["one", "two"], [None]])
async def test_an_adapter_whose_clients_pause_is_never_closed(callers: list[str | None]) -> None:
    """As many as its streams: an event of each was not read."""
    unread = Unread(PEERS)
    for number in range(1024):
        unread.add(0, callers[number % len(callers)], 1, 600)
    assert unread.to_close() == []
    unread.add(1, "greedy", 63, 512 * KIB)
    assert unread.to_close() == [1], "the caller with the most"


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([(0, "a", 31, MIB)], 0),
        ([(0, "a", 33, MIB)], 1),
        ([(0, "a", 10000, 10)], 1),  # the calls themselves
        ([(0, "a", 20, MIB), (0, "b", 20, MIB)], 1),  # of two keys
        ([(n, "a", 1, 31 * MIB) for n in range(4)], 3),
        ([(n, f"key {n}", 1, 31 * MIB) for n in range(4)], 3),
        ([(n, None, 1, 31 * MIB) for n in range(4)], 3),  # without keys
        ([(n, "a", 1, MIB) for n in range(34)] + [(MODEST, "b", 2, MIB)], 5),
    ],
)
async def test_connections_with_the_most_unread_of_the_caller_with_the_most_are_closed(
    rows: list[tuple[int, str | None, int, int]], count: int
) -> None:
    unread = Unread(PEERS)
    for row in rows:
        unread.add(*row)
    for _ in range(2):  # nothing else while gRPC has not let go of it
        closed = unread.to_close()
        assert len(closed) == count
        assert MODEST not in closed
    for one in unread.writing:
        one.set_result(None)
    await asyncio.sleep(0)
    assert unread.to_close() == []
    assert not unread.connections._unread


async def test_the_watch_closes_connections_with_unread_answers(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = Unread(address.connect(3))
    for number, megabytes in enumerate((1, 40, 2)):
        unread.add(number, None, megabytes, MIB)
    async with watching(unread.connections, address, monkeypatch, left=2):
        pass
    assert address.open() == [0, 2]
