"""What honest hosts answer in odd ways is read: codings, redirects, cookies, statuses, types, and slow lines."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import pytest

from inference_service.errors import (
    ImageFetchError,
    ImageFetchTimeoutError,
    ImageTooLargeError,
    QueueFullError,
)
from inference_service.media.file_budget import FileBudget
from tests.support.media_hosts import FakeResolver, Script, fetcher, refused, says, server


pytestmark = pytest.mark.usefixtures("dialled")

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
TEXT = b"no image at all, " * 10


async def got(script: Script, path: str = "/", **changes) -> bytes:
    """What is fetched from a server that does as told."""
    async with server(script) as port:
        service = fetcher(f"127.0.0.1:{port}", **changes)
        return await service.fetch(f"http://127.0.0.1:{port}{path}", field="f")


def _raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    "header",
    [
        *["aws-chunked", "utf-8", "UTF-8", "utf8", "binary", "base64", "none", "", " ", "identity"],
        *[
            "Identity",
            "IDENTITY",
            "identity, identity",
            "image/png",
            "png",
            "8bit",
            ",",
            "aws-chunked,",
        ],
    ],
)
@pytest.mark.parametrize("body", [PNG, TEXT])
async def test_codings_that_are_none_are_ignored(header, body):
    assert await got(says(f"HTTP/1.1 200 OK\nContent-Encoding: {header}", body)) == body


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ("gzip", gzip.compress(PNG)),
        ("x-gzip", gzip.compress(PNG)),
        ("GZIP", gzip.compress(PNG)),
        ("aws-chunked, gzip", gzip.compress(PNG)),
        ("gzip,aws-chunked", gzip.compress(PNG)),
        ("gzip\nContent-Encoding: utf-8", gzip.compress(PNG)),
        ("deflate", zlib.compress(PNG)),
        ("deflate", _raw_deflate(PNG)),
        ("deflate, gzip", gzip.compress(zlib.compress(PNG))),
        # labelled only
        ("gzip", PNG),
        ("deflate", PNG),
        ("br", PNG),
        ("zstd", PNG),
        ("gzip, gzip", gzip.compress(PNG)),
    ],
)
async def test_real_codings_are_undone_and_wrong_labels_seen_through(header, body):
    assert await got(says(f"HTTP/1.1 200 OK\nContent-Encoding: {header}", body)) == PNG


@pytest.mark.parametrize("header", ["gzip", "deflate", "gzip, gzip"])
async def test_a_compressed_body_is_decoded_under_the_maximum_size(header):
    pack = zlib.compress if header == "deflate" else gzip.compress
    bomb = pack(b"\0" * 2**22)
    with pytest.raises(ImageTooLargeError):
        await got(says(f"HTTP/1.1 200 OK\nContent-Encoding: {header}", bomb), max_bytes=2**20)


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ("br", b"\x0b\x02\x80abc\x03", "compressed with br, which was not requested"),
        ("zstd", b"\x28\xb5\x2f\xfdabc", "compressed with zstd"),
        ("gzip", gzip.compress(PNG)[:-9], "ends before it is complete"),
        ("gzip", b"\x1f\x8b" + b"x" * 50, "not valid gzip"),
        ("deflate", b"\x78\x9c" + b"x" * 50, "not valid deflate"),
    ],
)
async def test_bodies_that_cannot_be_decoded_say_why(header, body, words):
    async with server(says(f"HTTP/1.1 200 OK\nContent-Encoding: {header}", body)) as port:
        service = fetcher(f"127.0.0.1:{port}")
        error = await refused(service, f"http://127.0.0.1:{port}/", ImageFetchError)
    assert words in error.message
    assert error.metadata["cause"] == "content_encoding"


@pytest.mark.parametrize("status", ["200 OK", "203 Transformed", "201 Created", "202 x", "226 IM"])
@pytest.mark.parametrize("kind", ["", "\nContent-Type: text/html", "\nContent-Type: \xff/;;"])
async def test_every_2xx_with_a_body_is_read_whatever_its_type(status, kind):
    assert await got(says(f"HTTP/1.1 {status}{kind}", PNG)) == PNG


async def test_a_part_is_read_only_if_it_is_the_whole():
    head = "HTTP/1.1 206 Partial Content\nContent-Range: bytes {}"
    assert await got(says(head.format(f"0-{len(PNG) - 1}/{len(PNG)}"), PNG)) == PNG
    for part in ("0-9/100", "0-9/*", "5-9/10", "0-9/" + "9" * 5000, "", "x"):
        with pytest.raises(ImageFetchError, match="a part of the image"):
            await got(says(head.format(part), PNG))


@pytest.mark.parametrize(
    "head", ["200 OK", "200 OK\nContent-Length: 0", "204 No Content", "205 Reset", "203 x"]
)
async def test_no_body_is_told_with_the_status(head):
    with pytest.raises(ImageFetchError, match=f"status {head[:3]} and no content"):
        await got(says(f"HTTP/1.1 {head}"))


@pytest.mark.parametrize(
    "location",
    [
        *[
            "/pic",
            "pic",
            "./pic",
            "../pic",
            "?x",
            "/pic#fragment",
            " /pic",
            "/pic\t",
            "/my pic.png",
        ],
        *["//127.0.0.1:{port}/pic", "http://127.0.0.1:{port}/pic", "HTTP://127.0.0.1:{port}/pic"],
        *[
            "http://127.0.0.1:{port}",
            "/bücher/猫.png",
            "/a%20b%zz",
            "http:/pic",
            "/pic?u=http://x/",
        ],
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_odd_redirects_arrive(location, status):
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"GET /start/x "):
            port = writer.get_extra_info("sockname")[1]
            head = f"HTTP/1.1 {status} x\nLocation: {location.format(port=port)}"
            await says(head, b"<a>moved</a>")(request, writer)
        else:
            await says("HTTP/1.1 200 OK", PNG)(request, writer)

    assert await got(script, "/start/x") == PNG


@pytest.mark.parametrize(
    ("head", "words"),
    [
        ("302 Found", "status 302"),
        ("304 Not Modified", "status 304"),
        ("302 Found\nLocation: /a\nLocation: /b", "several URLs"),
        ("302 Found\nLocation: /", "more than 3 redirects"),
        ("403 Forbidden", "status 403 instead of 200; it may need a login"),
        ("500 Oops", "status 500"),
    ],
)
async def test_answers_without_an_image_say_what_they_are(head, words):
    with pytest.raises(ImageFetchError) as caught:
        await got(says(f"HTTP/1.1 {head}", b"secret"))
    assert words in caught.value.message
    assert "secret" not in caught.value.message


async def test_interim_responses_and_a_long_head_are_read():
    long = "\n".join(f"X-{n}: {'y' * 100}" for n in range(200))
    head = (
        f"HTTP/1.1 100 Continue\n\nHTTP/1.1 103 Early Hints\nLink: </x>\n\nHTTP/1.1 200 OK\n{long}"
    )
    assert await got(says(head, PNG)) == PNG


async def test_two_equal_locations_are_one():
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        moved = request.startswith(b"GET / ")
        head = "HTTP/1.1 302 x\nLocation: /p\nLocation: /p" if moved else "HTTP/1.1 200 OK"
        await says(head, PNG)(request, writer)

    assert await got(script) == PNG


@pytest.mark.parametrize(
    "cookie", ["seen=1", "seen=1; Path=/; HttpOnly", "a=b; Max-Age=60\nSet-Cookie: seen=1; path=/"]
)
async def test_a_cookie_comes_back_when_the_host_redirects_to_the_same_url(cookie):
    heard: list[bytes] = []

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        heard.append(request)
        if b"seen=1" in request:
            await says("HTTP/1.1 200 OK", PNG)(request, writer)
        else:
            await says(f"HTTP/1.1 302 x\nLocation: /\nSet-Cookie: {cookie}")(request, writer)

    async with server(script) as port:
        service = fetcher(
            f"pics.example:{port}", resolver=FakeResolver({"pics.example": [["127.0.0.1"]]})
        )
        for host in ("pics.example", "pics.example"):
            assert await service.fetch(f"http://{host}:{port}/", field="f") == PNG
    assert ["cookie" in request.decode().lower() for request in heard] == [False, True] * 2


async def test_a_cookie_does_not_go_to_another_host():
    heard: list[bytes] = []

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        heard.append(request)
        port = writer.get_extra_info("sockname")[1]
        if b"Host: a.example" in request:
            location = f"http://b.example:{port}/"
            await says(
                f"HTTP/1.1 302 x\nLocation: {location}\nSet-Cookie: s=1\nSet-Cookie: t=1; Domain=b.example"
            )(request, writer)
        else:
            await says("HTTP/1.1 200 OK", PNG)(request, writer)

    table = {"a.example": [["127.0.0.1"]], "b.example": [["127.0.0.1"]]}
    async with server(script) as port:
        service = fetcher(f".example:{port}", resolver=FakeResolver(table))
        assert await service.fetch(f"http://a.example:{port}/", field="f") == PNG
    assert len(heard) == 2
    assert b"cookie" not in heard[1].lower()


async def test_a_host_that_accepts_no_list_of_types_is_asked_for_any():
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        good = b"Accept: */*\r\n" in request
        await says("HTTP/1.1 200 OK" if good else "HTTP/1.1 406 No", PNG)(request, writer)

    assert await got(script) == PNG
    with pytest.raises(ImageFetchError, match="status 406"):
        await got(says("HTTP/1.1 406 No"))


async def test_ipv6_hosts():
    try:
        async with server(says("HTTP/1.1 200 OK", PNG), address="::1") as port:
            service = fetcher(f"[::1]:{port}")
            assert await service.fetch(f"http://[::1]:{port}/", field="f") == PNG
            assert await service.fetch(f"http://[0:0::0:1]:{port}/", field="f") == PNG
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")


def _drips(size: int, pieces: int, pause_s: float) -> Script:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size * pieces}\r\n\r\n".encode())
        for _ in range(pieces):
            await writer.drain()
            await asyncio.sleep(pause_s)
            writer.write(b"x" * size)
        await writer.drain()

    return script


async def test_a_slow_but_honest_host_is_waited_for():
    # 4 s in all, twice the timeout, at twenty times the lowest rate
    body = await got(_drips(2000, 40, 0.1), timeout_s=2, min_bytes_per_s=1000)
    assert len(body) == 80_000


@pytest.mark.parametrize(
    "script",
    [
        _drips(100, 100, 0.1),  # too slow on the whole
        _drips(20_000, 2, 3600),  # silent
        _drips(1, 10_000, 0.01),  # single bytes
    ],
)
async def test_a_host_below_the_lowest_rate_is_not(script):
    async with server(script) as port, asyncio.timeout(20):
        service = fetcher(f"127.0.0.1:{port}", timeout_s=0.5, min_bytes_per_s=5000)
        error = await refused(service, f"http://127.0.0.1:{port}/", ImageFetchTimeoutError)
    assert error.metadata["cause"] == "timeout_body"
    for words in ("--media-min-kib-per-s", "--media-timeout-s", "0.5 s"):
        assert words in error.message


async def test_files_wait_for_memory_that_other_requests_hold():
    budget = FileBudget(3 * len(PNG), wait_s=0.1)
    async with server(says("HTTP/1.1 200 OK", PNG)) as port:
        service, uri = fetcher(f"127.0.0.1:{port}"), f"http://127.0.0.1:{port}/"
        with budget.of_request() as oldest, budget.of_request() as other:
            for files in (oldest, other, other):
                await service.fetch(uri, field="f", files=files)
            with pytest.raises(QueueFullError, match="--media-buffer-mib"):
                await service.fetch(uri, field="f", files=other)
            await service.fetch(uri, field="f", files=oldest)  # goes on
        assert budget.used_bytes == 0
