"""A failed fetch says what failed and where, without addresses or what the host sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
import contextlib
import socket

from h11 import _readers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.errors import (
    ImageFetchError,
    ImageFetchTimeoutError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
    ServiceError,
)
from inference_service.media import policy
from inference_service.media.fetch import MediaFetcher
from inference_service.media.policy import AllowedHost, FetchPolicy
from tests.support.media_hosts import (
    PUBLIC,
    FakeResolver,
    Script,
    fetcher,
    refused,
    says,
    server,
)
from tests.support.ports import free_port


pytestmark = pytest.mark.usefixtures("dialled")

NAME = "pics.example"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def of_name(port: int, **changes) -> MediaFetcher:
    return fetcher(f"{NAME}:{port}", resolver=FakeResolver({NAME: [["127.0.0.1"]]}), **changes)


async def closes(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def resets(request: bytes, writer: asyncio.StreamWriter) -> None:
    linger = b"\1\0\0\0\0\0\0\0"
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def hangs(request: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def floods(begin: bytes, more: bytes = b"") -> Script:
    """Sends a beginning, and then something small for ever."""

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write((more or begin) * 1000)
            await writer.drain()

    return script


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (closes, "no_answer"),
        (resets, "reset"),
        (says("secret nonsense"), "not_http"),
        (says("SSH-2.0-secret"), "not_http"),
        (says("HTTP/1.1 200 OK\nContent-Length: 10", b"abc"), "incomplete"),
        (says("HTTP/1.1 200 OK\nTransfer-Encoding: chunked", b"5\r\nab"), "incomplete"),
        (says("HTTP/1.1 404 Not Found", b"secret"), "status"),
        (says("HTTP/1.1 200 OK"), "status"),
        (floods(b"HTTP/1.1 103 Early Hints\r\n\r\n"), "head"),
        (floods(b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"), "head"),
        (floods(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), "head"),
        (floods(CHUNKED + b"1\r\nx\r\n0\r\n", b"a:\r\n"), "trailers"),
        (floods(CHUNKED + b"1\r\nx\r\n0\r\na: ", b"b"), "trailers"),
        (floods(CHUNKED + b"1;", b"extension"), "trailers"),
        (
            floods(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            "small_pieces",
        ),
    ],
)
async def test_kinds_of_failed_answers(script: Script, cause: str):
    async with server(script) as port:
        url = f"http://{NAME}:{port}/"
        async with asyncio.timeout(20):
            error = await refused(of_name(port), url, ImageFetchError)
    assert error.metadata["cause"] == cause
    assert f"the host {NAME}:{port} " in error.message


@pytest.mark.parametrize("count", [10, 30, 128])
async def test_no_more_trailers_are_parsed_than_headers(count: int, monkeypatch):
    """They are parsed in the event loop, whatever comes with the last chunk."""
    parsed: list[int] = []
    parse = _readers._decode_header_lines

    def counted(lines: list[bytes]):
        parsed.append(sum(map(len, lines)))
        return parse(lines)

    monkeypatch.setattr(_readers, "_decode_header_lines", counted)
    body = b"x" * 100_000
    answer = CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(body), body)

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer + b"a: 3456789\r\n" * (count * 2**10 // 12) + b"\r\n")
        await writer.drain()

    async with server(script) as port:
        service, uri = of_name(port), f"http://{NAME}:{port}/"
        if count == 10:
            assert await service.fetch(uri, field="f") == body
        elif count == 128:
            await refused(service, uri, ImageFetchError)
        else:  # as they are cut into pieces
            with contextlib.suppress(ImageFetchError):
                await service.fetch(uri, field="f")
    assert sum(parsed) < 32 * 2**10


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
async def test_a_name_with_thousands_of_addresses(proxy: str | None, monkeypatch):
    checked: list[str] = []
    monkeypatch.setattr(policy, "is_public", checked.append)
    many = [f"93.184.{number // 256}.{number % 256}" for number in range(4000)]
    service = MediaFetcher(FetchPolicy(proxy=proxy), FakeResolver({NAME: [many]}))
    error = await refused(service, f"http://{NAME}/", ImageFetchError)
    assert error.metadata["cause"] == "name"
    assert "more than 128 addresses" in error.message
    assert not checked


async def test_a_refused_connection():
    port = free_port()
    error = await refused(of_name(port), f"http://{NAME}:{port}/", ImageFetchError)
    assert error.metadata["cause"] == "refused"
    assert error.metadata["host"] == f"{NAME}:{port}"
    assert error.message.endswith(f"the host {NAME}:{port} refused the connection.")


@pytest.mark.parametrize(
    ("raised", "cause"),
    [
        (socket.gaierror(socket.EAI_NONAME, "secret"), "no_such_name"),
        (socket.gaierror(socket.EAI_AGAIN, "secret"), "name"),
        (OSError("secret"), "name"),
        (None, "no_such_name"),
    ],
)
async def test_kinds_of_failed_lookups(raised: OSError | None, cause: str):
    async def resolver(host: str, port: int) -> Sequence[str]:
        if raised is not None:
            raise raised
        return []

    error = await refused(MediaFetcher(FetchPolicy(), resolver), f"http://{NAME}/", ImageFetchError)
    assert error.metadata["cause"] == cause
    assert f"the host {NAME} has a name that" in error.message


async def test_a_timeout_tells_its_stage_and_flag():
    async def slow(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(3600)
        return []

    lookup = MediaFetcher(FetchPolicy(timeout_s=0.05), slow)
    error = await refused(lookup, f"http://{NAME}/", ImageFetchTimeoutError)
    assert error.metadata["cause"] == "timeout_lookup"
    assert "looking up its name after 0.05 s (--media-timeout-s)" in error.message
    async with server(hangs) as port:
        service = of_name(port, timeout_s=0.2)
        error = await refused(service, f"http://{NAME}:{port}/", ImageFetchTimeoutError)
        assert error.metadata["cause"] == "timeout_answer"
        assert f"{NAME}:{port}: the service was still waiting for its answer" in error.message


async def test_a_connect_timeout_names_its_own_flag():
    with socket.socket() as listener:  # accepts nothing, and its queue is full
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        # where the queue takes them all nevertheless, TLS waits for an answer
        service = of_name(port, connect_timeout_s=0.2)
        error = await refused(service, f"https://{NAME}:{port}/", ImageFetchTimeoutError)
        for filler in fillers:
            filler.close()
    assert error.metadata["cause"] in {"timeout_connect", "timeout_tls"}
    assert "after 0.2 s (--media-connect-timeout-s)" in error.message


@pytest.mark.parametrize(
    ("allowed", "uri", "words"),
    [
        ((), f"http://{NAME}:8080/", (f"{NAME}:8080", "port 8080", "--allowed-media-domains")),
        ((), "http://inner.example/", ("inner.example", "not on the public internet")),
        (("x.example",), f"https://{NAME}/", (NAME, "not named by --allowed-media-domains")),
        ((f"{NAME}:81",), f"https://{NAME}/", (NAME, "but not with port 443")),
        ((), "http://127.0.0.1/", ("the image's host", "not on the public internet")),
    ],
)
async def test_a_refusal_tells_host_and_flag(
    allowed: tuple[str, ...], uri: str, words: tuple[str, ...]
):
    resolver = FakeResolver({"inner.example": [["10.0.0.1"]], NAME: [[PUBLIC]]})
    service = fetcher(*allowed, resolver=resolver)
    error = await refused(service, uri, ImageUrlRefusedError)
    for word in (*words, "--allowed-media-domains"):
        assert word in error.message


@pytest.mark.parametrize(
    ("location", "kind"),
    [
        ("http://secret.example/", ImageUrlRefusedError),
        ("http://secret.example:22/", ImageUrlRefusedError),
        ("ftp://secret.example/", InvalidImageUrlError),
        ("http://secret:x@x.example/", InvalidImageUrlError),
    ],
)
async def test_a_redirects_target_is_not_told(location: str, kind: type[ImageFetchError]):
    async with server(says(f"HTTP/1.1 302 x\nLocation: {location}")) as port:
        resolver = FakeResolver({NAME: [["127.0.0.1"]], "secret.example": [["10.0.0.1"]]})
        service = MediaFetcher(
            FetchPolicy(allowed_hosts=tuple(map(AllowedHost.parse, ("public", f"{NAME}:{port}")))),
            resolver,
        )
        error = await refused(service, f"http://{NAME}:{port}/", kind)
    assert "redirects to" in error.message
    assert "secret" not in str(error.metadata)


_VALUES = st.one_of(
    st.sampled_from(
        [
            *[
                "",
                " ",
                ",",
                "gzip",
                "gzip, br",
                "identity",
                "0",
                "3",
                "-1",
                "9" * 30,
                "0-2/3",
                "bytes 0-2/3",
            ],
            *[
                "/",
                "//",
                "http://[",
                "http://x\\y",
                "?",
                "a=b",
                "a=b; Domain=.",
                "a=b; Expires=x; Max-Age=y",
            ],
            *["chunked", "chunked, gzip", "close", "=", ";", "a=\u00ff; Path=\u00ff", "\u732b"],
        ]
    ),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=20),
)
_HEADERS = st.tuples(
    st.sampled_from(
        [
            *["Location", "Content-Length", "Content-Encoding", "Content-Range", "Set-Cookie", "X"],
            *["Content-Type", "Transfer-Encoding", "Connection", "Upgrade", "Trailer"],
        ]
    ),
    _VALUES,
)


_STATUSES = [100, 101, 199, 200, 203, 204, 206, 226, 299, 301, 304, 307, 406, 500, 999, 0]
_BODIES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"3\r\nabc\r\n0\r\n\r\n", b"\x1f\x8b\x08\0", b"x" * 5000]),
)


def test_whatever_a_host_answers_ends_with_bytes_or_a_clear_error() -> None:
    answer = b""

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    async def fetched(service: MediaFetcher, port: int) -> None:
        async with asyncio.timeout(30):
            with contextlib.suppress(ServiceError):
                found = await service.fetch(f"http://127.0.0.1:{port}/", field="f")
                assert 0 < len(found) <= 1000

    with asyncio.Runner() as runner:
        serving = server(script)
        port = runner.run(serving.__aenter__())
        service = fetcher(f"127.0.0.1:{port}", max_bytes=1000, timeout_s=2)

        @hypothesis_settings(max_examples=300, deadline=None)
        @given(st.sampled_from(_STATUSES), st.lists(_HEADERS, max_size=5), _BODIES)
        def attempt(status: int, headers: list[tuple[str, str]], body: bytes) -> None:
            nonlocal answer
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
            answer = f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body
            runner.run(fetched(service, port))

        attempt()
        runner.run(serving.__aexit__(None, None, None))
