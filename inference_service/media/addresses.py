"""Decides whether a network address or a host's name is public."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


# Addresses that `is_global` (Python 3.11) accepts although they host no public images.
_DENIED_V4 = tuple(
    ip_network(text)
    for text in (
        "168.63.129.16/32",  # a cloud provider's host, reachable from its guests only
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays, withdrawn
    )
)
# Only global unicast is delegated (RFC 4291); everything else is refused.
_UNICAST_V6 = ip_network("2000::/3")
_DENIED_V6 = (ip_network("3fff::/20"),)  # documentation, RFC 9637
_NAT64 = ip_network("64:ff9b::/96")  # RFC 6052; the last 32 bits are an IPv4 address
# Top-level domains of private networks: RFC 6761, 6762, 8375, ICANN's `internal`, and others in common use.
_PRIVATE_DOMAINS = frozenset(
    [
        "arpa",
        "corp",
        "home",
        "internal",
        "intranet",
        "invalid",
        "lan",
        "local",
        "localdomain",
        "localhost",
        "private",
        "svc",
    ]
)


def is_public(text: str) -> bool:
    """Whether an address belongs to the public internet and to a single host.

    Addresses that embed an IPv4 address (mapped, NAT64, 6to4) are public if that one is; Teredo and IPv4-compatible
    addresses are never public.

    Args:
        text: An IPv4 or IPv6 address as `getaddrinfo` writes it; anything else is not public.
    """
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv4Address):
        return _is_public_v4(address)
    if address.scope_id is not None:
        return False
    inner = _embedded_v4(address)
    if inner is not None:
        return _is_public_v4(inner)
    return (
        address.is_global
        and address in _UNICAST_V6
        and not any(address in network for network in _DENIED_V6)
    )


def is_public_name(host: str) -> bool:
    """Whether a name may belong to the public internet: it has a domain, and not one of private networks.

    Args:
        host: A name in lower case, without a dot at its end.
    """
    _, dot, top = host.rpartition(".")
    return bool(dot) and top not in _PRIVATE_DOMAINS


def _is_public_v4(address: IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not any(address in network for network in _DENIED_V4)
    )


def _embedded_v4(address: IPv6Address) -> IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour
