"""Looks up the addresses of host names."""

from __future__ import annotations

from collections.abc import Sequence
import socket
from typing import Final, Protocol

import aiodns
from aiodns import error as dns_error

from inference_service.media.url import is_address


_NO_SUCH_NAME: Final = frozenset(
    {
        dns_error.ARES_ENOTFOUND,
        dns_error.ARES_ENODATA,
        dns_error.ARES_ENONAME,
        dns_error.ARES_EBADNAME,
    }
)


class Resolver(Protocol):
    """Resolves host names to addresses."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """All addresses of a host, as text; an address resolves to itself.

        Raises:
            OSError: The name does not resolve; `socket.gaierror` with EAI_NONAME if it does not exist.
        """


class SystemResolver:
    """Resolves as the system is configured (name servers and search domains, hosts file), with c-ares.

    `getaddrinfo` blocks a thread per name until the name servers have answered, which nothing can interrupt: a few
    names whose servers are silent would stop the lookups of all other callers.
    """

    def __init__(self, name_servers: Sequence[str] = ()) -> None:
        """Takes the name servers as `address:port`; none = the system's."""
        self._name_servers = name_servers
        self._dns: aiodns.DNSResolver | None = None

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """See Resolver."""
        if is_address(host):
            return [host]
        if self._dns is None:  # only here, as it belongs to the running loop
            self._dns = aiodns.DNSResolver(self._name_servers or None)
        try:
            found = await self._dns.getaddrinfo(host, port=port, type=socket.SOCK_STREAM)
        except dns_error.DNSError as error:
            if error.args[0] in _NO_SUCH_NAME:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from error
            raise socket.gaierror(
                socket.EAI_AGAIN, "Temporary failure in name resolution"
            ) from error
        return list(dict.fromkeys(node.addr[0].decode("ascii") for node in found.nodes))

    async def close(self) -> None:
        """Ends the lookups."""
        if self._dns is not None:
            await self._dns.close()
