"""Free ports for the programs that tests start.

They lie below the ephemeral ones, from which the kernel takes the ports of outgoing connections and of listeners on
port 0: nobody is given one between the draw and the start of the program, however late it binds.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
import random
import socket


_LOWEST = 20_000
_TRIES = 100
_SYSTEM = random.SystemRandom()
"""Tests seed the common generator, and test runs at the same time would draw the same."""


def free_ports(count: int) -> list[int]:
    """A row of TCP ports, each one above the one before, that are free on every IPv4 address.

    Raises:
        AssertionError: There is no such row.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    last = max(int(ephemeral.split()[0]), _LOWEST + 10_000) - count
    for _ in range(_TRIES):
        first = _SYSTEM.randint(_LOWEST, last)
        ports = [*range(first, first + count)]
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in ports:
                probes.enter_context(socket.socket()).bind(("0.0.0.0", port))
            return ports
    raise AssertionError(f"no {count} free ports in a row from {_LOWEST} to {last}")


def free_port() -> int:
    """A TCP port on which nobody listens."""
    return free_ports(1)[0]
