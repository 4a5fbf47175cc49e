"""Which addresses are public."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.media.addresses import is_public, is_public_name


@pytest.mark.parametrize(
    "address",
    [
        *["0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254"],
        *["172.16.0.1", "192.0.0.8", "192.168.1.1", "192.0.2.1", "192.88.99.1", "198.18.0.1"],
        *["224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16"],
        *["::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::8.8.8.8"],
        *["64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::"],
        *["2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1"],
        *["fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1"],
        *["2001:4860:4860::8888%1", "", "x", "127.1", "0x7f000001"],
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *["8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2001:4860:4860::8888"],
        *["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"],
    ],
)
def test_public_addresses(address):
    assert is_public(address)


@given(st.integers(0, 2**32 - 1))
def test_an_address_is_judged_alike_in_every_notation(number):
    plain = is_public(str(IPv4Address(number)))
    nat64 = IPv6Address((0x64FF9B << 96) | number)
    assert is_public(f"::ffff:{IPv4Address(number)}") == plain
    assert is_public(str(nat64)) == plain
    assert is_public(str(IPv6Address((0x2002 << 112) | (number << 80) | 1))) == plain
    assert not is_public(str(IPv6Address(number)))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        *[
            ("example.com", True),
            ("a.b.co.uk", True),
            ("pics.example", True),
            ("xn--0ca.com", True),
        ],
        *[("localhost", False), ("minio", False), ("a.localhost", False), ("printer.local", False)],
        *[("metadata.google.internal", False), ("db.prod.svc.cluster.local", False)],
        *[("nas.home.arpa", False), ("router.lan", False), ("x.corp", False)],
    ],
)
def test_names_that_may_be_public(name, public):
    assert is_public_name(name) == public
