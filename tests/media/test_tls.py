"""https: the checked address is dialled, and the certificate is verified for the host's name all the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
import ssl

import pytest

from inference_service.errors import ImageFetchError
from inference_service.media.fetch import MediaFetcher
from inference_service.media.policy import AllowedHost, FetchPolicy
from inference_service.media.url import parse_url
from tests.support.certificates import Authority
from tests.support.media_hosts import FakeResolver, fetcher, refused, says, server


pytestmark = pytest.mark.usefixtures("dialled")

NAME = "images.test"
OK = says("HTTP/1.1 200 OK", b"ok")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def of_names(port: int, *names: str, ca_file: Path | None = None) -> MediaFetcher:
    resolver = FakeResolver({name: [["127.0.0.1"]] for name in names})
    return fetcher(*(f"{name}:{port}" for name in names), resolver=resolver, ca_file=ca_file)


async def test_the_right_name_is_accepted(authority: Authority) -> None:
    async with server(OK, tls=authority.serving(NAME)) as port:
        service = of_names(port, NAME, ca_file=authority.file)
        assert await service.fetch(f"https://{NAME}:{port}/a", field="f") == b"ok"


async def test_addresses_have_certificates_too(authority: Authority) -> None:
    async with server(OK, tls=authority.serving("127.0.0.1")) as port:
        service = fetcher(f"127.0.0.1:{port}", ca_file=authority.file)
        assert await service.fetch(f"https://127.0.0.1:{port}/a", field="f") == b"ok"


async def test_the_hosts_own_certificate_may_be_named(authority: Authority, tmp_path: Path) -> None:
    pinned = authority.certify(NAME)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pinned)
    async with server(OK, tls=tls) as port:
        service = of_names(port, NAME, ca_file=pinned)
        assert await service.fetch(f"https://{NAME}:{port}/a", field="f") == b"ok"


async def test_another_name_on_the_same_address_is_refused(authority: Authority) -> None:
    async with server(OK, tls=authority.serving(NAME)) as port:
        both = of_names(port, NAME, "other.test", ca_file=authority.file)
        await both.fetch(f"https://{NAME}:{port}/a", field="f")
        error = await refused(both, f"https://other.test:{port}/a", ImageFetchError)
    assert error.metadata["cause"] == "certificate_name_mismatch"
    assert "for another host name" in error.message


@pytest.mark.parametrize(
    ("days", "cause"),
    [((-9, -1), "certificate_expired"), ((1, 9), "certificate_not_yet_valid")],
)
async def test_certificates_out_of_time(
    authority: Authority, days: tuple[int, int], cause: str
) -> None:
    async with server(OK, tls=authority.serving(NAME, days=days)) as port:
        service = of_names(port, NAME, ca_file=authority.file)
        error = await refused(service, f"https://{NAME}:{port}/a", ImageFetchError)
    assert error.metadata["cause"] == cause
    assert error.message.startswith(
        f"The image could not be fetched: the host {NAME}:{port} has a TLS certificate that"
    )


async def test_an_unknown_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    for ca_file in (None, Authority(tmp_path, "Another").file):
        async with server(OK, tls=authority.serving(NAME)) as port:
            service = of_names(port, NAME, ca_file=ca_file)
            error = await refused(service, f"https://{NAME}:{port}/a", ImageFetchError)
        assert error.metadata["cause"] == "certificate_not_trusted"
        assert "--media-ca-file" in error.message


def test_the_file_vouches_only_for_hosts_that_the_operator_names(
    authority: Authority,
) -> None:
    def policy(*entries: str, proxy: str | None = None) -> FetchPolicy:
        allowed = tuple(map(AllowedHost.parse, entries))
        return FetchPolicy(allowed_hosts=allowed, ca_file=authority.file, proxy=proxy)

    named = policy("public", f"{NAME}:1", ".corp.test:2")
    plain = policy("public")
    for rules, url, trusted in (
        (named, "https://images.test:1/", True),
        (named, "https://a.corp.test:2/", True),
        (named, "https://images.test/", False),
        (named, "https://other.test/", False),
        (plain, "https://images.test/", False),
        (policy("public", proxy="http://proxy:1"), "https://images.test/", True),
    ):
        assert rules.trusts_ca_file(parse_url(url)) == trusted


async def test_plain_http_on_the_port_is_told() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        error = await refused(of_names(port, NAME), f"https://{NAME}:{port}/", ImageFetchError)
    assert error.metadata["cause"] == "not_tls"
    assert "the URL may have to begin with http://" in error.message


async def test_a_host_that_hangs_up_during_the_handshake() -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.close()

    listener = await asyncio.start_server(hangs_up, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        error = await refused(of_names(port, NAME), f"https://{NAME}:{port}/", ImageFetchError)
    assert error.metadata["cause"] in {"tls", "reset"}
