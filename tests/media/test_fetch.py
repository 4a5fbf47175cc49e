"""The guarded fetch against loopback servers and lying resolvers; every connect() is watched."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import os

import anyio
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.errors import (
    ImageFetchError,
    ImageFetchTimeoutError,
    ImageTooLargeError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
    ServiceError,
)
from inference_service.media.addresses import is_public
from inference_service.media.fetch import MediaFetcher
from inference_service.media.policy import FetchPolicy
from tests.support.media_hosts import (
    PUBLIC,
    FakeResolver,
    fetcher,
    refused,
    says,
    server,
)


pytestmark = pytest.mark.usefixtures("dialled")


async def test_request_as_sent():
    heard: list[bytes] = []

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        heard.append(request)
        await says("HTTP/1.1 200 OK\nContent-Length: 3\nSet-Cookie: a=b", b"abc")(request, writer)

    async with server(script) as port:
        resolver = FakeResolver({"pics.example": [["127.0.0.1"]]})
        service = fetcher(f"pics.example:{port}", resolver=resolver)
        for _ in range(2):
            assert await service.fetch(f"http://pics.example:{port}/a%20b?c=d", field="f") == b"abc"
    assert heard[0] == heard[1]
    lines = heard[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a%20b?c=d http/1.1"
    assert f"host: pics.example:{port}" in lines
    assert "accept-encoding: identity" in lines
    assert any(line.startswith("user-agent: qwen-vl-serving/") for line in lines)
    assert not any(line.startswith(("cookie", "authorization", "referer")) for line in lines)
    [accept] = [line for line in lines if line.startswith("accept:")]
    assert "image/jpeg" in accept
    assert not any(word in accept for word in ("avif", "heic", "svg", "*"))


@pytest.mark.parametrize(
    "answers",
    [
        *[["127.0.0.1"], ["10.0.0.1"], ["169.254.169.254"], ["168.63.129.16"], ["224.0.0.1"]],
        *[["::1"], ["::ffff:127.0.0.1"], ["64:ff9b::a9fe:a9fe"], ["2002:7f00:1::"], ["fe80::1%2"]],
        *[[PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], [PUBLIC, "::1"]],
    ],
)
async def test_every_answer_must_be_public(dialled, answers):
    service = fetcher(resolver=FakeResolver({"evil.example": [answers]}))
    await refused(service, "http://evil.example/x.png", ImageUrlRefusedError)
    assert dialled == []


async def test_rebinding_name_is_resolved_once_and_pinned(dialled):
    resolver = FakeResolver({"evil.example": [[PUBLIC], ["127.0.0.1"]]})
    await refused(fetcher(resolver=resolver), "http://evil.example/x.png", ImageFetchError)
    assert resolver.asked == ["evil.example"]
    assert dialled == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("http://127.0.0.1/", ImageUrlRefusedError),
        ("http://[::1]/", ImageUrlRefusedError),
        ("http://[::ffff:127.0.0.1]/", ImageUrlRefusedError),
        ("http://169.254.169.254/latest/meta-data", ImageUrlRefusedError),
        ("http://example.com:8080/", ImageUrlRefusedError),
        ("http://1２7.0.0.1/", ImageUrlRefusedError),
        ("http://2130706433/", InvalidImageUrlError),
        ("http://0x7f.1/", InvalidImageUrlError),
        ("http://127.0.0.1\\@example.com/", InvalidImageUrlError),
        ("http://user:secret@example.com/", InvalidImageUrlError),
        ("ftp://example.com/", InvalidImageUrlError),
        ("data:image/png;base64,AAAA", InvalidImageUrlError),
        ("DATA:,x", InvalidImageUrlError),
        ("", InvalidImageUrlError),
        ("file:///etc/passwd", ImageUrlRefusedError),
        ("http://nowhere.example/", ImageFetchError),
    ],
)
async def test_refused_without_a_connection(dialled, uri, kind):
    await refused(fetcher(), uri, kind)
    assert dialled == []


async def test_nothing_is_fetched_when_fetching_is_off(dialled):
    service = fetcher(enabled=False)
    for uri in ("http://example.com/", "file:///etc/passwd", "x"):
        await refused(service, uri, ImageUrlRefusedError)
    assert dialled == []


async def test_allow_list_restricts(dialled):
    resolver = FakeResolver({"a.example": [[PUBLIC]], "b.example": [[PUBLIC]]})
    service = fetcher("a.example", resolver=resolver)
    await refused(service, "http://b.example/", ImageUrlRefusedError)
    await refused(service, "http://a.example:8080/", ImageUrlRefusedError)
    assert resolver.asked == []
    await refused(service, "http://A.example./", ImageFetchError)
    assert dialled == [(PUBLIC, 80)]


async def test_entry_without_port_permits_no_private_address(dialled):
    service = fetcher("a.example", resolver=FakeResolver({"a.example": [["10.0.0.1"]]}))
    await refused(service, "http://a.example/", ImageUrlRefusedError)
    assert dialled == []


@pytest.mark.parametrize(
    "location",
    [
        *["http://127.0.0.1:1/", "http://169.254.169.254/", "//10.0.0.1/x", "http://[::1]/"],
        *[
            "http://inner.example/",
            "file:///etc/passwd",
            "http://2130706433/",
            "/a\\b",
            "gopher://x",
        ],
    ],
)
async def test_redirects_are_checked_again(dialled, location):
    async with server(says(f"HTTP/1.1 302 Found\nLocation: {location}")) as port:
        resolver = FakeResolver({"inner.example": [["127.0.0.1"]]})
        service = fetcher(f"127.0.0.1:{port}", resolver=resolver)
        with pytest.raises((ImageUrlRefusedError, InvalidImageUrlError)):
            await service.fetch(f"http://127.0.0.1:{port}/", field="f")
    assert dialled == [("127.0.0.1", port)]


@pytest.mark.parametrize(("hops", "arrives"), [(3, True), (4, False)])
async def test_number_of_redirects(dialled, hops, arrives):
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        left = int(request.split(b" ")[1][1:])
        head = f"HTTP/1.1 307 x\nLocation: {left - 1}" if left else "HTTP/1.1 200 OK"
        await says(head, b"" if left else b"ok")(request, writer)

    async with server(script) as port:
        service, uri = fetcher(f"127.0.0.1:{port}"), f"http://127.0.0.1:{port}/{hops}"
        if arrives:
            assert await service.fetch(uri, field="f") == b"ok"
        else:
            await refused(service, uri, ImageFetchError)
    assert len(dialled) == 4


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (says("HTTP/1.1 404 Not Found", b"secret"), ImageFetchError),
        (says("HTTP/1.1 302 Found"), ImageFetchError),
        (says("HTTP/1.1 206 Partial", b"abc"), ImageFetchError),
        (says("secret nonsense"), ImageFetchError),
        (says("HTTP/1.1 200 OK\nContent-Length: 10", b"abc"), ImageFetchError),
        (says("HTTP/1.1 200 OK\nContent-Length: 1000000"), ImageTooLargeError),
        (says("HTTP/1.1 200 OK\nContent-Length: 9" + "9" * 5000), ImageFetchError),
        (says("HTTP/1.1 200 OK", b"x" * 2000), ImageTooLargeError),
        (says("HTTP/1.1 200 OK\n" + "X: " + "y" * 200_000), ImageFetchError),
    ],
)
async def test_hosts_that_answer_wrongly_are_refused(script, kind):
    async with server(script) as port:
        service = fetcher(f"127.0.0.1:{port}", max_bytes=1000)
        await refused(service, f"http://127.0.0.1:{port}/", kind)


async def test_endless_body_is_cut(dialled):
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
            await writer.drain()

    async with server(script) as port:
        service = fetcher(f"127.0.0.1:{port}", max_bytes=100_000)
        await refused(service, f"http://127.0.0.1:{port}/", ImageTooLargeError)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_drip_fed_body_or_head_ends_in_time(head):
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with server(script) as port:
        service = fetcher(f"127.0.0.1:{port}", timeout_s=0.2)
        async with asyncio.timeout(10):
            await refused(service, f"http://127.0.0.1:{port}/", ImageFetchTimeoutError)


async def test_slow_resolver_ends_in_time():
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    service = MediaFetcher(FetchPolicy(timeout_s=0.05), never)
    async with asyncio.timeout(10):
        await refused(service, "http://example.com/", ImageFetchTimeoutError)


async def test_second_address_is_tried_after_a_failed_dial(dialled):
    async with server(says("HTTP/1.1 200 OK", b"ok")) as port:
        resolver = FakeResolver({"two.example": [["127.0.0.2", "127.0.0.1"]]})
        service = fetcher(f"two.example:{port}", resolver=resolver)
        assert await service.fetch(f"http://two.example:{port}/", field="f") == b"ok"
    assert dialled == [("127.0.0.2", port), ("127.0.0.1", port)]


async def test_environment_proxies_are_ignored(dialled, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with server(says("HTTP/1.1 200 OK", b"ok")) as port:
        service = fetcher(f"127.0.0.1:{port}")
        assert await service.fetch(f"http://127.0.0.1:{port}/", field="f") == b"ok"


_HOSTS = st.one_of(
    st.sampled_from(
        [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0",
            "localhost",
            "[::1]",
            "[::]",
            "a.example",
            "[::ffff:7f00:1]",
            "169.254.169.254",
            "[64:ff9b::7f00:1]",
            "mixed.example",
            "ｌocalhost",
        ]
    ),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.text(max_size=12),
)
_URLS = st.builds(
    "{}{}{}{}{}{}".format,
    st.sampled_from(
        ["http://", "https://", "HTTP:", "http:/", "http:\\\\", "//", "file://", " http://"]
    ),
    st.sampled_from(
        ["", "", "", "u@", "u:p@", "a.example\\@", "a.example#@", "a.example/@", "%40"]
    ),
    _HOSTS,
    st.sampled_from(["", "", ":80", ":443", ":22", ":0", ":", ":99999", ".", "\\", "\t", "%00"]),
    st.sampled_from(["", "/", "/x.png", "?q", "#f", "/\r\nHost: b", "/..;/"]),
    st.text(max_size=5),
)


def test_no_url_reaches_an_address_that_is_not_public():
    seen: list[str] = []

    async def refuse(remote_host, remote_port, *args, **kwargs):
        seen.append(str(remote_host))
        assert remote_port in (80, 443)
        raise OSError("no traffic in tests")

    resolver = FakeResolver(
        {
            "a.example": [[PUBLIC]],
            "mixed.example": [[PUBLIC, "10.0.0.1"]],
            "localhost": [["127.0.0.1", "::1"]],
        }
    )
    service = fetcher(resolver=resolver)

    @hypothesis_settings(max_examples=400, deadline=None)
    @given(_URLS)
    def attempt(url: str) -> None:
        with pytest.raises(ServiceError):
            runner.run(service.fetch(url, field="f"))

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(anyio, "connect_tcp", refuse)
        attempt()
    assert all(map(is_public, seen))
    assert PUBLIC in seen


async def test_files_are_read_below_the_allowed_folder_only(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    outside.mkdir()
    (root / "a b.png").write_bytes(b"abc")
    (outside / "x.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(outside / "x.png")
    (root / "large.png").write_bytes(b"x" * 2000)
    os.mkfifo(root / "pipe")
    service = fetcher(local_root=root.resolve(), max_bytes=1000)
    assert await service.fetch(f"file://{root}/a%20b.png", field="f") == b"abc"
    assert await service.fetch(f"file://localhost{root}/a%20b.png", field="f") == b"abc"
    assert await service.fetch(f" file://{root}/a b.png\n", field="f") == b"abc"
    for path in ("link.png", "../out/x.png", "%2e%2e/out/x.png", "pipe", "."):
        with pytest.raises((ImageUrlRefusedError, ImageFetchError)):
            await service.fetch(f"file://{root}/{path}", field="f")
    await refused(service, "file:///etc/passwd", ImageUrlRefusedError)
    await refused(service, f"file://{tmp_path}/in2/x", ImageUrlRefusedError)
    with pytest.raises(ImageTooLargeError):
        await service.fetch(f"file://{root}/large.png", field="f")
    with pytest.raises(ImageFetchError):
        await service.fetch(f"file://{root}/none.png", field="f")
    for uri in (f"file://host{root}/a.png", "file:a.png", f"file://{root}/%00", "file:///%ff"):
        with pytest.raises((InvalidImageUrlError, ImageFetchError)):
            await service.fetch(uri, field="f")
