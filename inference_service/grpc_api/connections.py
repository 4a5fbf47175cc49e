"""Makes room for new connections, so that those that do nothing never keep others out.

gRPC refuses new connections when there are too many, and cannot close one of its choice. So the sockets of the process
are looked at when there are nearly too many, and some are shut down: first those over which no call has come that had a
key, if one is needed; then those without a running call, whose last one is the longest ago; then the newest ones of a
caller that has more than its share. gRPC takes that for the client's leaving, and clients connect again with their next
call.

So ends, too, the connection of a client that does not read its answers: they stay in memory as long as it is open.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import logging
import os
from pathlib import Path
import socket
import stat
import time
from typing import Final, NamedTuple
from urllib.parse import unquote


MAX_WAITING: Final = 256
"""Refused calls that wait over a shared connection, of whose 1,024 streams each takes one."""

MAX_UNREAD_BYTES: Final = 2**20
"""Of answers that were not read in time, in memory as long as their connection is open."""

_UNKNOWN_TIMES: Final = 64
"""So much more over a connection of callers that nothing tells apart: they may be many."""
_CHECK_EVERY_S: Final = 0.25
_DESCRIPTORS: Final = Path("/proc/self/fd")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Use:
    """The calls of one connection.

    Attributes:
        caller: Whose they are.
        running: Their number.
        last_s: When the last one began or ended.
        is_shared: Whether calls of several callers may come over it, as those of an adapter do.
        is_of_several: Whether calls of several callers have come over it.
    """

    caller: str
    running: int = 0
    last_s: float = field(default_factory=time.monotonic)
    is_shared: bool = False
    is_of_several: bool = False


class Connections:
    """The connections of the addresses of this process, and what they are used for. Belongs to one event loop."""

    def __init__(self, maximum: int) -> None:
        """Knows no connection.

        Args:
            maximum: So many of one address stay open.
        """
        self._maximum = maximum
        self._uses: dict[str, _Use] = {}
        self._waiting: Counter[str] = Counter()  # refused calls, by connection
        self._seen: dict[str, float] = {}  # since when connections without a call are known
        self._unread: Counter[str] = Counter()  # bytes, by connection

    @contextlib.contextmanager
    def used(self, peer: str, caller: str | None = None) -> Iterator[None]:
        """Notes a call of a connection, while it runs.

        Args:
            peer: The connection, as gRPC writes it.
            caller: Who calls; None = callers are told apart by their hosts.
        """
        address = _address(peer)
        host = host_of(peer)
        use = self._uses.setdefault(address, _Use(caller or host))
        use.is_of_several |= caller is not None and caller != use.caller
        use.is_shared |= caller is None or use.is_of_several
        use.caller = caller or host
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1
            use.last_s = time.monotonic()

    @contextlib.contextmanager
    def waiting(self, peer: str, *, has_key: bool) -> Iterator[bool]:
        """Notes a refused call that is to wait before it is answered, and says whether it may.

        Over a shared connection only some may: the caller who is refused must not take the streams of the others.

        Args:
            peer: The connection, as gRPC writes it.
            has_key: Whether it is a call of a known caller, or none is known.
        """
        address = _address(peer)
        use = self._uses.get(address)
        is_shared = use is not None and (use.is_shared or not has_key)
        if is_shared and self._waiting[address] >= MAX_WAITING:
            yield False
            return
        self._waiting[address] += 1
        try:
            yield True
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def unread(self, peer: str, num_bytes: int) -> None:
        """Notes answers that a client did not read in time; a connection with many is closed, unless several share it.

        Args:
            peer: The connection, as gRPC writes it.
            num_bytes: What they take in memory; negative when that is free again.
        """
        address = _address(peer)
        self._unread[address] += num_bytes
        if self._unread[address] <= 0:
            del self._unread[address]

    def is_used(self, peer: str) -> bool:
        """Whether a call has come over a connection, as gRPC writes it."""
        return _address(peer) in self._uses

    async def watch(self, ports: dict[str, int]) -> None:
        """Makes room whenever there are nearly too many connections; runs until it is cancelled.

        Args:
            ports: The port of every address; may change.
        """
        if not _DESCRIPTORS.exists():  # not Linux
            return
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            wanted = frozenset(ports.values())
            if stuck := self._stuck():
                found = await asyncio.to_thread(_list, wanted)
                unread = frozenset(one for one in found if one.peer in stuck)
                await _close_all(wanted, unread, "closed connections with unread answers")
            if max(len(list(_DESCRIPTORS.iterdir())), len(self._uses)) > self._maximum:
                surplus = self._surplus(await asyncio.to_thread(_list, wanted))
                await _close_all(wanted, surplus, "closed idle connections")

    def _stuck(self) -> set[str]:
        """The connections whose unread answers take too much memory, and which are of one caller."""
        found = set()
        for address, num_bytes in self._unread.items():
            use = self._uses.get(address)
            times = _UNKNOWN_TIMES if use is not None and use.is_shared else 1
            if num_bytes > times * MAX_UNREAD_BYTES and not (use and use.is_of_several):
                found.add(address)
        return found

    def _surplus(self, connections: list[_Connection]) -> frozenset[_Connection]:
        """The connections to close."""
        now_s = time.monotonic()
        peers = {one.peer for one in connections}
        self._seen = {peer: self._seen.get(peer, now_s) for peer in peers}
        self._uses = {p: use for p, use in self._uses.items() if use.running or p in peers}
        too_many = Counter(one.port for one in connections)
        too_many.subtract(dict.fromkeys(too_many, self._maximum))
        surplus = set()
        for one in sorted(connections, key=self._rank):
            use = self._uses.get(one.peer)
            if too_many[one.port] > 0 and not (use and use.running):
                too_many[one.port] -= 1
                surplus.add(one)
        for port in +too_many:
            running = [one for one in connections if one.port == port and one not in surplus]
            surplus |= self._of_greedy(running, too_many[port])
        return frozenset(surplus)

    def _of_greedy(self, connections: list[_Connection], count: int) -> set[_Connection]:
        """At most so many of some connections with running calls: of callers with more than their share, the newest."""
        mine: dict[str, list[_Connection]] = {}
        for one in sorted(connections, key=lambda one: self._uses[one.peer].last_s):
            mine.setdefault(self._uses[one.peer].caller, []).append(one)
        share = max(1, self._maximum // (len(mine) + 1))
        taken: set[_Connection] = set()
        while len(taken) < count and len(most := max(mine.values(), key=len, default=[])) > share:
            taken.add(most.pop())
        return taken

    def _rank(self, connection: _Connection) -> tuple[bool, float]:
        """What is lower is closed first."""
        use = self._uses.get(connection.peer)
        return use is not None, use.last_s if use else self._seen[connection.peer]


class _Connection(NamedTuple):
    """A connection: our port and the client's address."""

    port: int
    peer: str


def _list(ports: frozenset[int]) -> list[_Connection]:
    """The connections of some ports."""
    return [connection for connection, _ in _sockets(ports)]


async def _close_all(
    ports: frozenset[int], connections: frozenset[_Connection], message: str
) -> None:
    if connections:
        await asyncio.to_thread(_close, ports, connections)
        logger.warning({"message": message, "number": len(connections)})


def _close(ports: frozenset[int], connections: frozenset[_Connection]) -> None:
    """Shuts connections down."""
    for connection, one in _sockets(ports):
        if connection in connections:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def _sockets(ports: frozenset[int]) -> Iterator[tuple[_Connection, socket.socket]]:
    """The connections of some ports with their sockets, which are open until the next one."""
    for path in _DESCRIPTORS.iterdir():
        number = int(path.name)
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            # A descriptor of our own: gRPC may close its own meanwhile, and another socket get the number.
            with socket.socket(fileno=os.dup(number)) as one:
                here, peer = one.getsockname(), one.getpeername()  # OSError: it listens
                if isinstance(here, tuple) and here[1] in ports:
                    yield _Connection(here[1], f"{_plain(peer[0])}:{peer[1]}"), one


def host_of(peer: str) -> str:
    """The host of what gRPC calls `ipv4:127.0.0.1:80` or `ipv6:%5B::1%5D:80`."""
    return _address(peer).rpartition(":")[0]


def _address(peer: str) -> str:
    """The address and the port of what gRPC calls `ipv4:127.0.0.1:80` or `ipv6:%5B::1%5D:80`."""
    kind, _, rest = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return peer
    host, _, port = unquote(rest).rpartition(":")
    return f"{_plain(host.strip('[]'))}:{port}"


def _plain(host: str) -> str:
    """An address without its zone, and without the prefix of IPv4 in IPv6."""
    return host.partition("%")[0].removeprefix("::ffff:")
