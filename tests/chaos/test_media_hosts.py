"""A neighbour's answers, and the memory of the service, while a caller has images fetched from a host of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
import contextlib
import gzip
from pathlib import Path

import grpc.aio
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.chaos.service import MIB, MODEL, Neighbour, Service, running
from tests.grpc_api.asking import image_part, spec_of
from tests.support.images import draw
from tests.support.media_hosts import Script, server


REQUESTS = 72
SECONDS = 6.0
SLACK_S = 5.0  # other processes share the machine of the tests
MAX_RSS = 1024 * MIB
PNG = draw("red", "circle").png
OK = b"HTTP/1.1 200 OK\r\n"


def bomb() -> bytes:
    """An image and zeros behind it: 20 KB that are 20 MB."""
    return OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(PNG + bytes(19 * MIB))


def layers(count: int) -> bytes:
    """Zeros that expand in each of many layers."""
    body = bytes(20 * MIB)
    for _ in range(count - 1):
        packed = gzip.compress(body, 1)
        body = packed + bytes(20 * MIB - len(packed))
    head = b"Content-Encoding: " + b",".join([b"gzip"] * count) + b"\r\n\r\n"
    return OK + head + gzip.compress(body)


def trailers() -> bytes:
    head = OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    return head + b"a:\r\n" * 2**15 + b"\r\n"


def host() -> Script:
    """Answers what the path says; else sends an image as slowly as the service allows."""
    answers = {b"/bomb": bomb(), b"/layers": layers(20), b"/trailers": trailers()}

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        known = answers.get(request.split()[1].partition(b"?")[0])
        writer.write(known or OK + b"\r\n" + PNG)
        await writer.drain()
        while known is None:
            await asyncio.sleep(0.5)
            writer.write(bytes(2**13))
            await writer.drain()

    return script


@contextlib.asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[Service, str]]:
    """The service, and the address of a host that it may fetch from."""
    keys = ("neighbour", "attacker")
    async with server(host()) as port:
        flags = (f"--allowed-media-domains=127.0.0.1:{port}", "--media-timeout-s=5")
        async with running(directory, *flags, keys=keys) as service:
            yield service, f"http://127.0.0.1:{port}"


async def asks(service: Service, parts: list[message_pb.Part]) -> Counter[str]:
    """Sends many requests with these images at once, and leaves when the time is over."""
    outcomes: Counter[str] = Counter()
    metadata = (("authorization", "Bearer attacker"),)

    async def one(stub: chat_grpc.ChatServiceStub, number: int) -> None:
        spec = spec_of(*parts, f"{number}?", model=MODEL, sampling={"max_tokens": 1})
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        try:
            await stub.CreateChatCompletion(request, metadata=metadata, timeout=SECONDS)
            outcomes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            outcomes[error.code().name] += 1

    async with service.channel() as channel:
        stub = chat_grpc.ChatServiceStub(channel)
        await asyncio.gather(*(one(stub, number) for number in range(REQUESTS)))
    return outcomes


def images(address: str, *paths: str) -> list[message_pb.Part]:
    """An image that is sent as bytes, and others that are fetched."""
    urls = [message_pb.Part(image=message_pb.Image(uri=f"{address}{path}")) for path in paths]
    return [image_part(PNG), *urls]


@pytest.mark.full
async def test_a_neighbour_beside_images_from_hostile_hosts(tmp_path: Path) -> None:
    async with serving(tmp_path) as (service, address):
        neighbour = Neighbour(service, "neighbour")
        quiet = await neighbour.beside(None, 2)
        for paths in (
            ["/slow"],
            [*(f"/bomb?{number}" for number in range(6)), "/slow"],
            [f"/layers?{number}" for number in range(4)],
            [f"/trailers?{number}" for number in range(4)],
        ):
            outcomes: list[Counter[str]] = []

            async def attack(paths: list[str] = paths, seen: list = outcomes) -> None:
                seen.append(await asks(service, images(address, *paths)))

            during = await neighbour.beside(attack, SECONDS)
            figures = f"{paths[0]}: {outcomes}\nquiet: {quiet}\nduring: {during}"
            assert not during.errors, figures
            assert during.p99 < 3 * quiet.p99 + SLACK_S, figures
            assert max(during.checks) < 1 + SLACK_S, figures
            assert during.rss < MAX_RSS, figures
