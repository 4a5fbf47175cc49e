"""The arithmetic of docs/operations.md adds up, and follows the settings and the table above it."""

from __future__ import annotations

import math
from pathlib import Path
import re

import pytest

from inference_service.settings import ServiceSettings


TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
RATE = 10_000
WAIT_S = 0.5 + 100 * 0.02
PLACES = ServiceSettings().max_num_seqs
BY_PLACES = math.ceil(RATE * WAIT_S / (0.7 * PLACES))
BY_SPEED = math.ceil(RATE / (0.7 * 20))
REPLICAS = math.ceil(1.02 * max(BY_PLACES, BY_SPEED))
ADAPTERS = math.ceil(RATE / (0.7 * 100))
(KV_TOKENS,) = re.findall(r"^\| Qwen3-VL-4B-Instruct \| h100 \| (\d+)", TEXT, re.MULTILINE)


@pytest.mark.parametrize(
    "words",
    [
        f"= {WAIT_S} s |",
        f"| {RATE * WAIT_S:,.0f} |",
        f"min({PLACES}, {int(KV_TOKENS):,} / 1,300 = {int(KV_TOKENS) // 1300}) = {PLACES}",
        f"/ {0.7 * PLACES:.1f} = {BY_PLACES} |",
        f"= {BY_SPEED} |",
        f"| {REPLICAS} |",
        f"| {RATE * 1200:,}/s; {RATE * 100:,}/s |",
        f"= 300 cores, {300 / REPLICAS:.2f} of each replica",
        f"{RATE * 200e3 * 4 / 3 / 1e9:.2f} GB/s = {RATE * 200e3 * 4 / 3 * 8 / 1e9:.1f} Gbit/s",
        f"| 2 GB/s = {RATE * 200e3 * 8 / 1e9:.0f} Gbit/s |",
        f"= {ADAPTERS} |",
        f"| {2 * ADAPTERS}; idle ones are closed beyond 1,536 |",
        f"run {REPLICAS} replicas behind one name: its answer of DNS would have {REPLICAS * 16 / 1e3:.0f} KB",
        f"13 cells of {math.ceil(REPLICAS / 13)} replicas and {math.ceil(ADAPTERS / 13)} adapters",
        f"13 cells carry the loss of {int(13 * 0.3)}",
        f"{(REPLICAS + ADAPTERS) * 600 / 1e3:.0f},000 series",
        f"{round((REPLICAS + ADAPTERS) * 600 / 15, -2):,.0f} samples/s",
        f"{REPLICAS} downloads of 9 GB are {REPLICAS * 9 / 1e3:.1f} TB",
    ],
)
def test_the_plan_adds_up(words: str) -> None:
    assert words in " ".join(TEXT.split())
