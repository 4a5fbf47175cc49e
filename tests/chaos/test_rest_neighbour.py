"""A neighbour's answers, health and the memory of the product while one caller attacks its REST API.

The attacks and their bounds are in `rest_attacks`. How long a loop stands still is measured in CPU time of its process,
so that the figure is the same on a busy machine.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
import time

import httpx
import pytest

from tests.chaos import attacks, rest_attacks
from tests.chaos.product import MAX_RSS, Client, Product, product


SAMPLE = ("turns at the limit",)
SECONDS = 2.0
MAX_STALL_S = 0.5
"""Half of the time in which health must answer, as that takes two loops."""
SCRAPE_TIMEOUT_S = 10.0
SLACK_S = 5.0
"""Other processes share the machine of the tests."""


async def check(
    found: Product, client: Client, name: str, key: str, port_of_metrics: int = 0
) -> None:
    """Attacks the product, and checks what its neighbour sees."""
    outcome: list[str] = []

    async def attack() -> None:
        launch, port = rest_attacks.launch, port_of_metrics or found.http
        if name.startswith("gRPC "):
            launch, port = attacks.launch, found.grpc
        outcome.append(await launch(name.removeprefix("gRPC "), port, key, SECONDS))

    quiet = await client.beside(None, 1)
    found.stalls()
    during = await client.beside(attack, SECONDS)
    stalls = found.stalls()
    after = await client.beside(None, 1)
    figures = f"{name}: {outcome}\nquiet: {quiet}\nduring: {during}\nafter: {after}\n{stalls}"
    assert outcome[0], figures
    assert not during.errors, figures
    assert not after.errors, figures
    assert stalls, figures
    assert max(stalls.values()) < MAX_STALL_S, figures
    for kind in quiet.seconds:
        assert during.p99(kind) < 3 * quiet.p99(kind) + SLACK_S, figures
    for process, limit in MAX_RSS.items():
        assert max(during.rss[process], after.rss[process]) < limit, figures


async def test_a_neighbour_beside_attacks_on_rest(tmp_path: Path) -> None:
    async with product(tmp_path, keys=("neighbour", "attacker")) as found:
        client = Client(found, "neighbour")
        for name in SAMPLE:
            await check(found, client, name, "attacker")


@pytest.mark.full
@pytest.mark.parametrize("module", ["inference_service", "rest_adapter"])
async def test_a_neighbour_beside_attacks_on_metrics(tmp_path: Path, module: str) -> None:
    """And Prometheus gets its metrics."""
    async with product(tmp_path, keys=("neighbour",)) as found:
        client, port = Client(found, "neighbour"), found.metrics[module]
        for name in rest_attacks.ON_METRICS:
            scraping = asyncio.ensure_future(scrape_all(port))
            await check(found, client, name, "", port)
            scraping.cancel()
            scrapes = await scraping
            assert scrapes, name
            assert max(scrapes) < SCRAPE_TIMEOUT_S, (name, scrapes)


async def scrape_all(port: int) -> list[float]:
    """How long scrapes take, one after the other until it is cancelled; Prometheus would give up after ten seconds."""
    times: list[float] = []
    url = f"http://127.0.0.1:{port}/metrics"
    with contextlib.suppress(asyncio.CancelledError):
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S) as client:
            while True:
                begin = time.monotonic()
                answer = await client.get(url, headers={"connection": "close"})
                assert answer.status_code == 200
                times.append(time.monotonic() - begin)
                await asyncio.sleep(0.5)
    return times


@pytest.mark.full
@pytest.mark.parametrize("key", ["attacker", ""])
async def test_a_neighbour_beside_every_attack(tmp_path: Path, key: str) -> None:
    """One after the other, so that what one leaves behind shows in the next."""
    async with product(tmp_path, keys=("neighbour", "attacker")) as found:
        client = Client(found, "neighbour")
        for name in rest_attacks.ATTACKS:
            await check(found, client, name, key)
        for name in ("large messages", "many frames", "long chats"):
            await check(found, client, f"gRPC {name}", key)
