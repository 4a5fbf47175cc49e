"""Addresses: what is one, where it listens, and what gRPC would call."""

from __future__ import annotations

import socket

import pytest

from qwenvl.addresses import Address, check_target, listen, parse_address


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000), "127.0.0.1:8000"),
        (" localhost:0 ", Address("localhost", 0), "localhost:0"),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535), "127.0.0.1:65535"),
        ("[::1]:80", Address("::1", 80), "[::1]:80"),
        ("[::]:80", Address("::", 80), "127.0.0.1:80"),
        (":80", Address("::", 80), "127.0.0.1:80"),
        ("my-host.example_1:080", Address("my-host.example_1", 80), "my-host.example_1:80"),
    ],
)
def test_addresses(text: str, address: Address, local: str) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert str(address.local()) == local


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("127.0.0.1:65536", "has port 65536, but a port is between 0 and 65535"),
        ("127.0.0.1:-1", "has port -1, but a port is between 0 and 65535"),
        ("127.0.0.1:99999999999999999999", "a port is between 0 and 65535"),
        ("8000", "such as 127.0.0.1:8000"),
        ("", "must be HOST:PORT"),
        ("localhost", "must be HOST:PORT"),
        ("localhost:", "with a port"),
        ("localhost:http", "with a port"),
        ("localhost:8.0", "with a port"),
        ("localhost:８０", "with a port"),
        ("http://localhost:80", "without a scheme"),
        ("localhost:80/v1", "without a scheme or a path"),
        ("::1:80", r"in brackets, such as \[::1\]:PORT"),
        ("::1", r"in brackets, such as \[::1\]:PORT"),
        ("fe80::a", r"in brackets, such as \[fe80::a\]:PORT"),
        ("a:1,b:2", "has 'a:1,b', which is not the name or address of a host"),
        ("[::g]:80", "not an IPv6 address"),
        ("a b:80", "not the name or address of a host"),
        ("*:80", "not the name or address of a host"),
    ],
)
def test_what_is_no_address(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_address(text)


def reaches(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as client:
        return client.connect_ex((host, port)) == 0


def test_all_addresses_means_ipv4_too() -> None:
    [one] = listen(Address("::", 0))
    with one:
        port = one.getsockname()[1]
        assert reaches("127.0.0.1", port)
        if one.family == socket.AF_INET6:  # else this machine has no IPv6
            assert reaches("::1", port)


def test_every_address_of_a_name_is_listened_on_with_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def two(*_: object, **__: object) -> list:
        one = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
        gone = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
        return [one, gone, one, (*one[:4], ("127.0.0.2", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    sockets = listen(Address("name", 0))
    assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1", "127.0.0.2"]
    assert len({one.getsockname()[1] for one in sockets}) == 1
    for one in sockets:
        one.close()


def test_a_taken_port_is_refused_whatever_the_host() -> None:
    [taken] = listen(Address("127.0.0.1", 0))
    with taken:
        for host in ("127.0.0.1", "0.0.0.0", "::", "localhost"):
            with pytest.raises(OSError, match="in use"):
                listen(Address(host, taken.getsockname()[1]))


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:50051",
        "dns:///inference:50051",
        "dns:inference:50051",
        "dns://8.8.8.8/inference:50051",
        "dns:///[::1]:50051",
        "unix:/run/service.sock",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "xds:///service",
        "inference",
    ],
)
def test_targets(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:70000",
        "dns:///inference:70000",
        "dns:///inference:-1",
        "inference:port",
        "http://127.0.0.1:50051",
        "https://127.0.0.1",
        "grpc://127.0.0.1:50051",
        "127.0.0.1:",
        "127.0.0.1:0",
        ":50051",
        "::1:50051",
        "a b:50051",
        "tcp://inference:50051",
        "dns:///",
        " ",
        f"inference:{'9' * 5000}",
    ],
)
def test_targets_that_call_something_else_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match=r"must|has"):
        check_target(target)


@pytest.mark.parametrize("host", ["224.0.0.1", "255.255.255.255", "[ff02::1]"])
def test_addresses_of_many_machines_are_refused(host: str) -> None:
    """A socket listens there, and nothing ever connects."""
    with pytest.raises(ValueError, match="not the address of one machine"):
        parse_address(f"{host}:8000")
