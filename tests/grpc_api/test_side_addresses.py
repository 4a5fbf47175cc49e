"""What strangers do at the addresses for metrics, health and administration delays no request, probe or scrape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
import contextlib
import time

from grpc_health.v1 import health_pb2, health_pb2_grpc
import pytest

from tests.grpc_api.asking import spec_of
from tests.grpc_api.conftest import OpenService, Service, channel_to
from tests.support.scrape import scrape


ADDRESSES = ("metrics", "health", "admin")
CONNECTIONS = 200
PATIENCE_S = 10
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """A frame of HTTP/2."""
    size, number = len(body).to_bytes(3, "big"), stream.to_bytes(4, "big")
    return size + bytes([kind, flags]) + number + body


HUGE_HEAD = b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 2**17  # twice the longest line
ENDLESS_HEADERS = frame(1, 0, 1, b"") + b"".join(
    frame(9, 0, 1, b"\x00\x01x\x7f\x80\x7e" + b"y" * 16_000) for _ in range(16)
)
"""A head in 16 frames of 16 kB, without an end."""
ATTACKS: dict[str, Callable[[], bytes]] = {
    "silent": lambda: b"",
    "huge head": lambda: HUGE_HEAD,
    "http/2 preface": lambda: PREFACE,
    "endless headers": lambda: PREFACE + ENDLESS_HEADERS,
}


@pytest.fixture
async def service(open_service: OpenService) -> Service:
    addresses = ("metrics_address", "health_address")
    return await open_service(**dict.fromkeys(addresses, "127.0.0.1:0"))


@contextlib.asynccontextmanager
async def besieged(port: int, sent: bytes, connections: int) -> AsyncIterator[None]:
    """Connections that send something and then one byte after the other, and come again when they are closed."""

    async def attack() -> None:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                with contextlib.closing(writer):
                    writer.write(sent)
                    while not writer.transport.is_closing():
                        writer.write(b"x")
                        await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)

    attackers = [asyncio.create_task(attack()) for _ in range(connections)]
    try:
        await asyncio.sleep(0.5)
        yield
    finally:
        for one in attackers:
            one.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)


async def probe(service: Service) -> None:
    """As the kubelet: a connection of its own for every check."""
    async with channel_to(service.target("health")) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="readiness")
        response = await health.Check(request, timeout=PATIENCE_S)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def scraped(service: Service) -> None:
    """As Prometheus."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError):  # no room
            seen = await asyncio.to_thread(scrape, service.target("metrics"))
            assert seen.value("qwenvl_ready") == 1
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.full
async def test_a_siege(service: Service, address: str, attack: str) -> None:
    await answers_through(service, address, attack)


async def test_a_siege_of_silent_connections(service: Service) -> None:
    await answers_through(service, "metrics", "silent", requests=2)


async def answers_through(
    service: Service, address: str, attack: str, *, requests: int = 5
) -> None:
    port = service.front.ports[address]
    async with besieged(port, ATTACKS[attack](), CONNECTIONS):
        for number in range(requests):
            async with asyncio.timeout(PATIENCE_S):
                answer = await service.create(spec_of(f"{number}", sampling={"max_tokens": 3}))
            assert answer.choices
            await probe(service)
        if address != "metrics":
            await scraped(service)
    await scraped(service)
