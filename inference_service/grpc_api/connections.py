"""Makes room for new connections, so that those that do nothing never keep others out.

gRPC refuses new connections when there are too many, and cannot close one of its choice. So the sockets of the process
are looked at when there are nearly too many, and some are shut down: first those over which no call has come that had a
key, if one is needed; then those without a running call, whose last one is the longest ago; then the newest ones of a
caller that has more than its share. gRPC takes that for the client's leaving, and clients connect again with their next
call.

So end, too, connections of clients that do not read their answers, as these stay in memory as long as they are open:
when all together are too many, those of the caller with the most. One alone is never closed for a few small answers: an
adapter's clients may pause.
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

_UNREAD_CALL_BYTES: Final = 2**13
"""What a call whose answer was not read counts beside the answer. It takes some 28 KiB, but an adapter may have
hundreds whose clients pause."""

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
    """

    caller: str
    running: int = 0
    last_s: float = field(default_factory=time.monotonic)
    is_shared: bool = False


class Connections:
    """The connections of the addresses of this process, and what they are used for. Belongs to one event loop."""

    def __init__(self, maximum: int, max_unread_bytes: int) -> None:
        """Knows no connection.

        Args:
            maximum: So many of one address stay open.
            max_unread_bytes: Maximum of all answers that were not read in time.
        """
        self._maximum = maximum
        self._max_unread_bytes = max_unread_bytes
        self._uses: dict[str, _Use] = {}
        self._waiting: Counter[str] = Counter()  # refused calls, by connection
        self._seen: dict[str, float] = {}  # since when connections without a call are known
        self._unread: Counter[tuple[str, str]] = Counter()  # bytes, by caller and connection

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
        use.is_shared |= caller is None or caller != use.caller
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

    def unread(
        self, peer: str, caller: str | None, num_bytes: int, writing: asyncio.Future[None]
    ) -> None:
        """Notes an answer that a client did not read in time.

        Args:
            peer: The connection, as gRPC writes it.
            caller: Who called; None = callers are told apart by their hosts.
            num_bytes: The size of the answer.
            writing: Ends when it is in memory no longer.
        """
        key = caller or host_of(peer), _address(peer)
        held_bytes = num_bytes + _UNREAD_CALL_BYTES
        self._unread[key] += held_bytes

        def gone(_: object) -> None:
            self._unread[key] -= held_bytes
            if not self._unread[key]:
                del self._unread[key]

        writing.add_done_callback(gone)

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
            if addresses := self._with_most_unread():
                found = await asyncio.to_thread(_list, wanted)
                unread = frozenset(one for one in found if one.peer in addresses)
                await _close_all(wanted, unread, "closed connections with unread answers")
            if max(len(list(_DESCRIPTORS.iterdir())), len(self._uses)) > self._maximum:
                surplus = self._surplus(await asyncio.to_thread(_list, wanted))
                await _close_all(wanted, surplus, "closed idle connections")

    def _with_most_unread(self) -> set[str]:
        """The addresses to close so that unread answers are not too many.

        They are the same ones again as long as gRPC has not let go of what they held, and none beyond.
        """
        surplus = self._unread.total() - self._max_unread_bytes
        if surplus <= 0:
            return set()
        of_caller: Counter[str] = Counter()
        of_address: Counter[str] = Counter()
        for (caller, address), num_bytes in self._unread.items():
            of_caller[caller] += num_bytes
            of_address[address] += num_bytes
        found: set[str] = set()
        most = sorted(self._unread.items(), key=lambda one: (of_caller[one[0][0]], one[1]))
        while surplus > 0:
            (_, address), _ = most.pop()
            surplus -= 0 if address in found else of_address[address]
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
