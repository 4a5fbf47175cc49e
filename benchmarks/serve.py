"""Measures a running server over both APIs, and the overhead of REST over gRPC. Both addresses must be loopback.

Runs alternate between the APIs (gRPC, REST, gRPC, REST, ...) so that other load on the machine affects both; each pair
gives one ratio, and the median of the ratios is reported. Every request has a different image and exactly `--tokens`
tokens of output, so that no cache shortens it and all requests do the same work. Request bodies are encoded before the
measurement. In a closed loop, `--concurrency` requests are always in flight.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
import ipaddress
import itertools
import json
from pathlib import Path
import statistics
import sys
import time
from urllib.parse import urlsplit

import grpc


# This file is run by its path, so that only its own folder is on sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.clients import (
    ApiClient,
    BenchmarkError,
    GrpcClient,
    Load,
    RestClient,
    Timing,
    canonical_model,
    draw,
)


WARM_UP_REQUESTS = 2
FAILURES = (BenchmarkError, grpc.RpcError, OSError, TimeoutError, asyncio.IncompleteReadError)
"""Failures that a server may cause; anything else is a defect of this program."""


@dataclass(frozen=True, slots=True)
class Run:
    """All requests of one API at one concurrency."""

    api: str
    concurrency: int
    wall_s: float
    timings: tuple[Timing, ...]

    @property
    def per_token_s(self) -> float:
        """Median over the requests."""
        return statistics.median(timing.per_token_s for timing in self.timings)

    @property
    def first_token_s(self) -> float:
        """Median over the requests."""
        return statistics.median(timing.first_token_s for timing in self.timings)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: times in milliseconds, pooled over all runs of an API at a concurrency."""

    concurrency: int
    api: str
    first_token_p50_ms: float
    first_token_p99_ms: float
    between_tokens_p50_ms: float
    between_tokens_p99_ms: float
    tokens_per_s: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class Hop:
    """The overhead of REST over gRPC at one concurrency: medians over the pairs, and the extremes of the ratio."""

    concurrency: int
    per_token_us: float
    ratio: float
    lowest: float
    highest: float
    first_token_ms: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, interpolated linearly."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


async def measure(
    client: ApiClient, concurrency: int, requests: int, seeds: Iterator[int], load: Load
) -> Run:
    """Runs a closed loop: `concurrency` workers, each sends a request as soon as its last one has finished."""
    waiting = [client.body(draw(load.image_size, next(seeds))) for _ in range(requests)]
    timings: list[Timing] = []

    async def work() -> None:
        while waiting:
            timings.append(await client.ask(waiting.pop()))

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())
    return Run(client.name, concurrency, time.perf_counter() - start, tuple(timings))


async def measure_all(arguments: argparse.Namespace) -> list[Run]:
    """Warms up both APIs and measures them alternately at every concurrency."""
    load = Load(
        arguments.model or await canonical_model(arguments.grpc_target, arguments.timeout),
        arguments.tokens,
        arguments.image_size,
        arguments.timeout,
    )
    clients = (GrpcClient(arguments.grpc_target, load), RestClient(arguments.rest_url, load))
    # Not reproducible on purpose: images of an earlier benchmark may be in the server's caches.
    seeds = itertools.count(time.time_ns())
    runs: list[Run] = []
    try:
        for client in clients:
            await measure(client, 1, WARM_UP_REQUESTS, seeds, load)
        for concurrency in arguments.concurrency:
            for _ in range(arguments.pairs):
                runs += [
                    await measure(client, concurrency, arguments.requests, seeds, load)
                    for client in clients
                ]
    finally:
        for client in clients:
            await client.close()
    return runs


def rows(runs: Sequence[Run]) -> list[Row]:
    """Pools the runs of each API at each concurrency, in order."""
    groups: dict[tuple[int, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.concurrency, run.api), []).append(run)
    result = []
    for (concurrency, api), group in groups.items():
        timings = [timing for run in group for timing in run.timings]
        first = [timing.first_token_s * 1e3 for timing in timings]
        gaps = [gap * 1e3 for timing in timings for gap in timing.gaps_s] or [0.0]
        wall_s = sum(run.wall_s for run in group)
        result.append(
            Row(
                concurrency,
                api,
                percentile(first, 0.5),
                percentile(first, 0.99),
                percentile(gaps, 0.5),
                percentile(gaps, 0.99),
                sum(timing.tokens for timing in timings) / wall_s,
                len(timings) / wall_s,
            )
        )
    return result


def hops(runs: Sequence[Run]) -> list[Hop]:
    """Compares the consecutive runs of the two APIs, pair by pair."""
    pairs: dict[int, list[tuple[Run, Run]]] = {}
    for over_grpc, over_rest in zip(runs[::2], runs[1::2], strict=True):
        pairs.setdefault(over_grpc.concurrency, []).append((over_grpc, over_rest))
    result = []
    for concurrency, group in pairs.items():
        # A stream that arrived in one piece has no time per token and cannot be compared.
        ratios = [b.per_token_s / a.per_token_s for a, b in group if a.per_token_s] or [
            float("nan")
        ]
        result.append(
            Hop(
                concurrency,
                statistics.median(b.per_token_s - a.per_token_s for a, b in group) * 1e6,
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                statistics.median(b.first_token_s - a.first_token_s for a, b in group) * 1e3,
            )
        )
    return result


def table(lines: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    head = (
        "| concurrency | API | first token p50 / p99 ms | between tokens p50 / p99 ms | tokens/s | requests/s |\n"
        "|---|---|---|---|---|---|"
    )
    body = [
        f"| {row.concurrency} | {row.api} | {row.first_token_p50_ms:.1f} / {row.first_token_p99_ms:.1f} "
        f"| {row.between_tokens_p50_ms:.2f} / {row.between_tokens_p99_ms:.2f} "
        f"| {row.tokens_per_s:.1f} | {row.requests_per_s:.2f} |"
        for row in lines
    ]
    return "\n".join([head, *body])


def sentence(costs: Sequence[Hop]) -> str:
    """The overhead in one sentence."""
    parts = [
        f"{hop.per_token_us:+.0f} µs per token (x{hop.ratio:.3f}, pairs x{hop.lowest:.3f} to x{hop.highest:.3f}) and "
        f"{hop.first_token_ms:+.1f} ms to the first token at concurrency {hop.concurrency}"
        for hop in costs
    ]
    return "The REST hop costs over gRPC: " + "; ".join(parts) + "."


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, checking that numbers are in range and addresses are loopback."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rest-url", type=loopback_url, default="http://127.0.0.1:8000")
    parser.add_argument("--grpc-target", type=_loopback_target, default="127.0.0.1:50051")
    parser.add_argument("--model", help="served model name (default: the canonical one)")
    parser.add_argument("--concurrency", type=between(1, 256), nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=between(1, 10_000), default=32, help="requests per run")
    parser.add_argument("--pairs", type=between(1, 100), default=5, help="runs of each API")
    parser.add_argument(
        "--tokens", type=between(2, 4096), default=64, help="tokens of every answer"
    )
    parser.add_argument(
        "--image-size", type=between(32, 4096), default=256, help="side of the images in pixels"
    )
    parser.add_argument(
        "--timeout", type=between(1, 3600), default=120, help="timeout of one request, s"
    )
    parser.add_argument(
        "--time-limit", type=between(1, 86_400), default=1800, help="limit of the whole run, s"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    arguments = parser.parse_args(argv)
    if arguments.requests < max(arguments.concurrency):
        parser.error("--requests must be at least the highest --concurrency")
    return arguments


def between(low: int, high: int) -> Callable[[str], int]:
    """A type of arguments: integers from `low` to `high`."""

    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return number


def loopback_url(text: str) -> str:
    """A type of arguments: http URLs of loopback addresses."""
    parts = urlsplit(text)
    if parts.scheme != "http" or not _is_loopback(parts.hostname):
        raise argparse.ArgumentTypeError(f"{text} is not an http URL of a loopback address")
    return text


def _loopback_target(text: str) -> str:
    if not _is_loopback(urlsplit(f"//{text}").hostname):
        raise argparse.ArgumentTypeError(f"{text} is not a loopback address")
    return text


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def report(runs: Sequence[Run], arguments: argparse.Namespace) -> None:
    """Prints the table and the sentence, and writes the JSON file if requested."""
    lines, costs = rows(runs), hops(runs)
    print(table(lines), sentence(costs), sep="\n\n")
    if arguments.json:
        asked = {key: value for key, value in vars(arguments).items() if key != "json"}
        document = {
            "asked": asked,
            "rows": [asdict(line) for line in lines],
            "hops": [asdict(cost) for cost in costs],
            "runs": [asdict(run) for run in runs],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


async def bounded(arguments: argparse.Namespace) -> list[Run]:
    """Measures within the time limit of the whole benchmark."""
    async with asyncio.timeout(arguments.time_limit):
        return await measure_all(arguments)


def main(argv: Sequence[str]) -> int:
    """Measures, reports, and returns the exit status."""
    arguments = parse(argv)
    try:
        runs = asyncio.run(bounded(arguments))
    except ExceptionGroup as group:
        expected, other = group.split(FAILURES)
        if expected is None or other is not None:
            raise
        print(f"no result: {expected.exceptions[0]!r}", file=sys.stderr)
        return 1
    except FAILURES as error:
        print(f"no result: {error!r}", file=sys.stderr)
        return 1
    report(runs, arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
