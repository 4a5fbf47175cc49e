"""A neighbour's answers, health and the service's memory while one caller attacks.

The attacks and their bounds are in `attacks`. `qwenvl.rpc` and the front's limits decide what is tried here: no attack
may cost the neighbour an answer, and none may leave something behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.chaos.attacks import ATTACKS, launch
from tests.chaos.service import MIB, Figures, Neighbour, Service, running


SAMPLE = ("unfinished health checks", "closed window", "many parts")
SECONDS = 3.0
GOODPUT_S = 8.0
MAX_RSS = 1024 * MIB
"""The front has about 80 MiB; its budgets for messages add up to 384, of which parsing needs a copy."""
SLACK_S = 2.0
"""Other processes share the machine of the tests."""


async def attacked(directory: Path, name: str, key: str) -> tuple[Figures, Figures, Figures, str]:
    """What the neighbour sees before, during and after an attack, and what the attacker got."""
    outcome: list[str] = []
    async with running(directory, keys=("neighbour", "attacker")) as service:
        neighbour = Neighbour(service, "neighbour")

        async def attack() -> None:
            outcome.append(await launch(name, service.port, key, SECONDS))

        quiet = await neighbour.beside(None, 2)
        during = await neighbour.beside(attack, SECONDS)
        after = await neighbour.beside(None, 1)
    return quiet, during, after, outcome[0]


async def check(directory: Path, name: str, key: str) -> None:
    quiet, during, after, outcome = await attacked(directory, name, key)
    figures = f"{name}: {outcome}\nquiet: {quiet}\nduring: {during}\nafter: {after}"
    assert outcome, figures
    assert not during.errors, figures
    assert not after.errors, figures
    assert during.p99 < 3 * quiet.p99 + SLACK_S, figures
    assert max(during.checks) < 1 + SLACK_S, figures
    assert max(during.rss, after.rss) < MAX_RSS, figures


@pytest.mark.parametrize("name", SAMPLE)
async def test_a_neighbour_beside_an_attack(tmp_path: Path, name: str) -> None:
    await check(tmp_path, name, "attacker")


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(ATTACKS) - set(SAMPLE)))
async def test_a_neighbour_beside_every_attack(tmp_path: Path, name: str) -> None:
    await check(tmp_path, name, "attacker")


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(ATTACKS))
async def test_a_neighbour_beside_every_attack_without_a_key(tmp_path: Path, name: str) -> None:
    await check(tmp_path, name, "")


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(
        tmp_path, "--max-queue=8", "--max-num-seqs=4", keys=("neighbour", "attacker")
    ) as service:
        yield service


@pytest.mark.full
async def test_goodput_under_ten_times_more_callers(small: Service) -> None:
    """Refusals cost little, and a caller who hammers is slowed down instead of the others."""
    polite = await launch("polite", small.port, "attacker", GOODPUT_S)
    hammering = await launch("hammering", small.port, "attacker", GOODPUT_S)
    assert count(hammering, "OK") > 0.8 * count(polite, "OK"), (polite, hammering)
    # A refusal takes a millisecond: what is paced costs a tenth of a core at most, and usually half of that.
    assert count(hammering, "RESOURCE_EXHAUSTED") < 100 * (GOODPUT_S + 1), hammering


def count(outcome: str, code: str) -> int:
    """How many requests of a flood ended with a code."""
    return int(outcome.partition(f"'{code}': ")[2].partition(",")[0].rstrip("}") or 0)


async def test_the_service_ends_in_time_beside_an_attack(tmp_path: Path) -> None:
    async with running(tmp_path, "--drain-timeout-s=5", keys=("attacker",)) as service:
        attack = asyncio.ensure_future(launch("closed window", service.port, "attacker", 8))
        await asyncio.sleep(2)
        service.process.terminate()
        async with asyncio.timeout(20):
            assert await service.process.wait() == 0
        await attack
