"""Fetching through the operator's proxy: it gets every request, and the guard still applies to names and addresses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
import contextlib
import os
from pathlib import Path

import pytest

from inference_service.errors import ImageFetchError, ImageUrlRefusedError, ServiceError
from inference_service.media.fetch import MediaFetcher
from inference_service.media.policy import AllowedHost, FetchPolicy
from tests.support.certificates import Authority
from tests.support.media_hosts import FakeResolver, says, server
from tests.support.ports import free_port


pytestmark = pytest.mark.usefixtures("dialled")

OK = says("HTTP/1.1 200 OK\nContent-Length: 2", b"ok")


class Proxy:
    """An HTTP proxy that sends everything to one port, whatever the host; knows what it was asked for."""

    def __init__(self, target: int, *, status: int = 200) -> None:
        self.target = target
        self.status = status
        self.heads: list[bytes] = []

    @property
    def asked(self) -> list[str]:
        """The method and the host of each request."""
        return [" ".join(head.decode().split(" ")[:2]) for head in self.heads]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.status != 200:
            writer.write(f"HTTP/1.1 {self.status} secret\r\n\r\n".encode())
            await close(writer)
            return
        upstream, out = await asyncio.open_connection("127.0.0.1", self.target)
        if head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            out.write(head)
        await asyncio.gather(pipe(reader, out), pipe(upstream, writer))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def proxied(
    proxy: Proxy, *allowed: str, resolver: FakeResolver | None = None, **changes
) -> AsyncIterator[MediaFetcher]:
    answering: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.add(asyncio.get_running_loop().create_task(proxy(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        policy = FetchPolicy(
            allowed_hosts=tuple(map(AllowedHost.parse, allowed)),
            proxy=f"http://user:secret@127.0.0.1:{port}",
            **changes,
        )
        yield MediaFetcher(policy, resolver or FakeResolver())
        async with asyncio.timeout(20):
            await asyncio.gather(*answering)


async def test_names_go_to_the_proxy_whether_they_resolve_here_or_not(dialled):
    async with server(OK) as port:
        proxy = Proxy(port)
        resolver = FakeResolver({"known.example": [["93.184.216.34"]]})
        async with proxied(proxy, resolver=resolver) as service:
            for host in ("known.example", "unknown.example"):
                assert await service.fetch(f"http://{host}/a%20b?c", field="f") == b"ok"
    assert proxy.asked == [
        "GET http://known.example/a%20b?c",
        "GET http://unknown.example/a%20b?c",
    ]
    assert all(b"Host: " in head and b"Proxy-Authorization: Basic" in head for head in proxy.heads)
    assert len(dialled) == 2


async def test_https_is_tunnelled_and_the_proxys_authority_trusted(tmp_path: Path):
    authority = Authority(tmp_path)
    async with server(OK, tls=authority.serving("pics.example")) as port:
        proxy = Proxy(port)
        async with proxied(proxy, ca_file=authority.file) as service:
            assert await service.fetch("https://pics.example/x", field="f") == b"ok"
            with pytest.raises(ImageFetchError, match="for another host name"):
                await service.fetch("https://other.example/x", field="f")
        assert proxy.asked == ["CONNECT pics.example:443", "CONNECT other.example:443"]
        assert b"user:secret" not in b"".join(proxy.heads)
        async with proxied(proxy) as service:
            with pytest.raises(ImageFetchError, match="authority trusted here"):
                await service.fetch("https://pics.example/x", field="f")


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://127.0.0.1/",
            "http://169.254.169.254/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
        ],
        *["http://localhost/", "http://printer/", "http://db.local/", "http://x.internal/"],
        *["http://inner.example/", "http://mixed.example/", "http://pics.example:8080/"],
    ],
)
async def test_what_is_not_public_is_refused_before_the_proxy(dialled, url: str):
    resolver = FakeResolver(
        {"inner.example": [["10.0.0.1"]], "mixed.example": [["93.184.216.34", "10.0.0.1"]]}
    )
    async with proxied(Proxy(1), resolver=resolver) as service:
        with pytest.raises(ImageUrlRefusedError):
            await service.fetch(url, field="f")
    assert dialled == []


async def test_hosts_that_the_operator_names_go_through_the_proxy_too(dialled):
    async with server(OK) as port:
        proxy = Proxy(port)
        async with proxied(proxy, "minio:9000", "10.0.0.1:80") as service:
            for url in ("http://minio:9000/b/x", "http://10.0.0.1/x"):
                assert await service.fetch(url, field="f") == b"ok"
            with pytest.raises(ImageUrlRefusedError):
                await service.fetch("http://pics.example/x", field="f")
    assert proxy.asked == ["GET http://minio:9000/b/x", "GET http://10.0.0.1/x"]


async def test_redirects_are_checked_behind_the_proxy():
    async with server(says("HTTP/1.1 302 x\nLocation: http://127.0.0.1:1/")) as port:
        proxy = Proxy(port)
        async with proxied(proxy) as service:
            with pytest.raises(ImageUrlRefusedError):
                await service.fetch("http://pics.example/", field="f")
    assert len(proxy.heads) == 1


async def test_a_name_that_is_not_looked_up_in_time_is_left_to_the_proxy():
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    async with server(OK) as port, proxied(Proxy(port), connect_timeout_s=0.5) as service:
        service._resolve = silent
        assert await service.fetch("http://pics.example/", field="f") == b"ok"
        with pytest.raises(ImageUrlRefusedError):
            await service.fetch("http://printer/", field="f")


@pytest.mark.parametrize("url", ["http://pics.example/", "https://pics.example/"])
async def test_a_proxy_that_refuses_is_told(url: str):
    async with proxied(Proxy(1, status=403)) as service:
        with pytest.raises(ServiceError) as caught:
            await service.fetch(url, field="f")
    assert isinstance(caught.value, ImageFetchError)
    assert "secret" not in caught.value.message
    assert "403" in caught.value.message or "--media-proxy" in caught.value.message


async def test_a_proxy_that_is_down_is_told():
    policy = FetchPolicy(proxy=f"http://user:secret@127.0.0.1:{free_port()}")
    with pytest.raises(ImageFetchError) as caught:
        await MediaFetcher(policy, FakeResolver()).fetch("https://pics.example/", field="f")
    assert (
        "the proxy of this service (--media-proxy) refused the connection" in caught.value.message
    )
    for hidden in ("127.0", "secret"):
        assert hidden not in caught.value.message


async def test_only_the_operators_proxy_is_used(monkeypatch: pytest.MonkeyPatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "pics.example")
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    async with server(OK) as port:
        proxy = Proxy(port)
        async with proxied(proxy) as service:
            assert await service.fetch("http://pics.example/", field="f") == b"ok"
        assert len(proxy.heads) == 1
        policy = FetchPolicy(allowed_hosts=(AllowedHost.parse(f"127.0.0.1:{port}"),))
        direct = MediaFetcher(policy, FakeResolver())
        assert await direct.fetch(f"http://127.0.0.1:{port}/", field="f") == b"ok"
