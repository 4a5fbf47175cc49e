"""Addresses of the form HOST:PORT: read, listened on and called, the same way in all programs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
import errno
import ipaddress
import os
import re
import socket
from typing import Final


MAX_PORT: Final = 65535

_HOST: Final = re.compile(r"[\w.-]+", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?\d{1,30}", re.ASCII)
_TARGET: Final = re.compile(r"(?:dns:(?://[^/]*/)?)?(?P<address>[^/]*)", re.ASCII)
_OTHER_SCHEMES: Final = (
    "unix:",
    "unix-abstract:",
    "xds:",
    "ipv4:",
    "ipv6:",
    "google-c2p:",
    "vsock:",
)
_ALL_IPV4: Final = "0.0.0.0"  # noqa: S104 - compared with, not chosen
_ALL: Final = "::"
_MISSING: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@dataclass(frozen=True, slots=True)
class Address:
    """A host, without brackets, and a port; `::` = every address, IPv4 and IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        """`HOST:PORT`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def local(self) -> Address:
        """The address at which a program on this machine reaches one that listens here."""
        everywhere = self.host in (_ALL, _ALL_IPV4)
        return Address("127.0.0.1" if everywhere else self.host, self.port)


def parse_address(text: str) -> Address:
    """Reads `HOST:PORT`; an IPv6 address is in brackets, and no host is `::`.

    Raises:
        ValueError: It is not of that form, or the port is not between 0 and 65535; the message says which.
    """
    text = text.strip()
    host, colon, port = text.rpartition(":")
    if _is_ipv6(text) and not _is_ipv6(host):
        raise ValueError(f"must have its IPv6 address in brackets, such as [{text}]:PORT")
    if not colon and port.isascii() and port.isdigit() and len(port) <= len(str(MAX_PORT)):
        raise ValueError(f"must be HOST:PORT, such as 127.0.0.1:{port}")
    if "//" in text or "/" in text:
        raise ValueError("must be HOST:PORT, without a scheme or a path")
    if not colon or not _NUMBER.fullmatch(port):
        raise ValueError("must be HOST:PORT, with a port between 0 and 65535")
    if not 0 <= int(port) <= MAX_PORT:
        raise ValueError(f"has port {port}, but a port is between 0 and {MAX_PORT}")
    return Address(_parse_host(host) or _ALL, int(port))


def _parse_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        if not _is_ipv6(host[1:-1]):
            raise ValueError(f"has {host}, which is not an IPv6 address")
        return _unicast(host[1:-1])
    if _is_ipv6(host):
        raise ValueError(f"must have its IPv6 address in brackets, such as [{host}]:PORT")
    if host and not _HOST.fullmatch(host):
        raise ValueError(f"has {host!r}, which is not the name or address of a host")
    return _unicast(host)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _unicast(host: str) -> str:
    """A host, unless it is a group of machines: a socket there listens, but nothing can connect to it."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return host
    if address.is_multicast or str(address) == "255.255.255.255":
        raise ValueError(f"has {host}, which is not the address of one machine")
    return host


def check_target(target: str) -> None:
    """Checks the host and the port in a gRPC target; targets of other schemes than `dns` are left to gRPC.

    Raises:
        ValueError: gRPC would call another port, or none.
    """
    if target.startswith(("http:", "https:", "grpc:", "grpcs:")):
        raise ValueError("must be HOST:PORT or dns:///HOST:PORT, not a URL")
    if target.startswith(_OTHER_SCHEMES):
        return
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ValueError("must be HOST:PORT or dns:///HOST:PORT")
    address = match["address"]
    if _HOST.fullmatch(address):
        return  # gRPC's own port, 443: where TLS ends before the service
    if not parse_address(address).port or address.startswith(":"):
        raise ValueError("must have a host, and a port between 1 and 65535, to call")


def listen(address: Address) -> list[socket.socket]:
    """Binds and listens on an address; a name has one socket per address of this machine that it means.

    Raises:
        OSError: It cannot be listened on; `socket.gaierror` if the host has no address.
    """
    if address.host == _ALL:
        return [_listen_everywhere(address.port)]
    found = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    places = dict.fromkeys((family, place) for family, _, _, _, place in found)
    opened: list[socket.socket] = []
    missing: OSError | None = None
    port = address.port
    with contextlib.ExitStack() as stack:
        for family, place in places:
            try:
                one = socket.create_server((place[0], port, *place[2:]), family=family)
            except OSError as error:
                if error.errno not in _MISSING:
                    raise
                missing = error  # `localhost` also means ::1, which not every machine has
                continue
            opened.append(stack.enter_context(one))
            port = one.getsockname()[1]  # one for all, also where it was 0
        if missing is not None and not opened:
            raise missing
        stack.pop_all()
    return opened


def why_not(error: OSError) -> str:
    """Why `listen` failed, without what the libraries add to it."""
    if isinstance(error, socket.gaierror):
        return f"the host cannot be resolved: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        return "the port is in use; choose another one"
    return os.strerror(error.errno) if error.errno else str(error)


def _listen_everywhere(port: int) -> socket.socket:
    """One socket for IPv6 and IPv4, or for IPv4 alone on a machine without IPv6."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
    return socket.create_server((_ALL_IPV4, port))
