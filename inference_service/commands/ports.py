"""The ports of `qwenvl serve`: free before anything starts, and then its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
import errno
import os
from pathlib import Path
import re
import socket

from qwenvl.addresses import MAX_PORT, Address, listen


_PROC = Path("/proc")
_LISTENING = "0A"
_SHOWN_CHARACTERS = 60


class PortProblem(Exception):  # noqa: N818 - names the condition
    """An address cannot be listened on; the message says why, and has the name of the setting in `name`."""

    def __init__(self, name: str, address: Address, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.address = address


def reserve(addresses: Mapping[str, Address]) -> dict[str, Address]:
    """Checks that all addresses can be listened on, together.

    Args:
        addresses: The address of each setting.

    Returns:
        The same, with a free port where the port is 0.

    Raises:
        PortProblem: One cannot.
    """
    taken: dict[int, str] = {}
    reserved: dict[str, Address] = {}
    with ExitStack() as stack:
        for name, address in addresses.items():
            try:
                sockets = [stack.enter_context(one) for one in listen(address)]
            except socket.gaierror as error:
                text = f"host {address.host!r} cannot be resolved: {error.strerror}"
                raise PortProblem(name, address, text) from None
            except OSError as error:
                text = _reason(error, address.port, taken.get(address.port))
                raise PortProblem(name, address, text) from None
            port = sockets[0].getsockname()[1]
            taken[port] = name
            reserved[name] = Address(address.host, port)
    return reserved


@contextmanager
def claimed(addresses: Mapping[str, Address]) -> Iterator[None]:
    """Keeps every other `qwenvl serve` of this user from the same addresses. Linux only.

    Seconds pass between the check of the ports and their opening: of two programs that start together, each would get
    some of them, and both would end.

    Args:
        addresses: The address of each setting, with its port.

    Raises:
        PortProblem: Another one has claimed an address.
    """
    with ExitStack() as stack:
        for name, address in addresses.items():
            claim = stack.enter_context(socket.socket(socket.AF_UNIX))
            try:
                # In the abstract namespace: nothing is left behind, whatever becomes of this process.
                claim.bind(f"\0qwenvl-serve/{os.getuid()}/{address}")
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    text = f"another `qwenvl serve` is starting on port {address.port}; choose another port"
                    raise PortProblem(name, address, text) from None
        yield


def _reason(error: OSError, port: int, other: str | None) -> str:
    if error.errno == errno.EADDRINUSE and other is not None:
        return f"port {port} is also that of --{other.replace('_', '-')}"
    if error.errno == errno.EADDRINUSE:
        users = ", ".join(f"process {pid} ({_command(pid)})" for pid in sorted(listeners(port)))
        return f"port {port} is in use by {users or 'another process'}; choose another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    if error.errno == errno.EACCES:
        return f"port {port} needs the permissions of an administrator; choose one from 1024 to {MAX_PORT}"
    return str(error.strerror)


def listeners(port: int) -> set[int]:
    """The ids of the processes that listen on a TCP port, as far as this user may see them. Linux only."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    return {pid for pid, link in _open_sockets() if link in wanted} if wanted else set()


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        path = _PROC / "net" / table
        lines = path.read_text().splitlines()[1:] if path.is_file() else []
        for columns in map(str.split, lines):
            if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                yield columns[9]


def _open_sockets() -> Iterator[tuple[int, str]]:
    for directory in _PROC.glob("[0-9]*/fd"):
        try:
            for descriptor in directory.iterdir():
                yield int(directory.parent.name), str(descriptor.readlink())
        except OSError:  # another user's process, or one that has ended
            continue


def _command(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    text = re.sub(r"[^\x20-\x7e]", "?", " ".join(filter(None, words)))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
