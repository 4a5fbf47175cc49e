"""Compares this server with other OpenAI-compatible ones under the same load, in turns, on one machine.

    python benchmarks/peers.py --server ours http://127.0.0.1:8000 PID --server theirs http://127.0.0.1:8101 PID

The first server is compared with each of the others. PID is the process that started a server, so that its share of the
processor, with all its children, is known: what neither it nor this client used was used by others, and a run in which
others used more than `--other-cores` is thrown away. Every round measures all servers in random order at each
concurrency, and gives one ratio of tokens per second for each pair of runs of which none was thrown away.

The load: every request has its own random image and its own first words, so that no cache shortens it, and asks for
exactly `--tokens` tokens; a closed loop keeps `--concurrency` requests in flight. Answers may be streams of events or,
from servers that do not stream, one document. All addresses must be loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
import io
import itertools
import json
import os
from pathlib import Path
import random
import statistics
import sys
import time
from typing import Any

import httpx
import numpy as np
from PIL import Image


# This file is run by its path, so that only its own folder is on sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.clients import BenchmarkError
from benchmarks.serve import between, loopback_url, percentile


QUESTION = (
    "describe the image in detail and say which objects colours and shapes it shows where they are what they might"
    " mean and how they relate to each other then write a short list of the most important facts with one line for each"
    " of them and end with a summary that a child could read"
)
WARM_UP_REQUESTS = 2
CHAT = "/v1/chat/completions"
FAILURES = (BenchmarkError, httpx.HTTPError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its name in the table, base URL, process, and model name; None = the first that it lists."""

    name: str
    url: str
    pid: int
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its tokens, and the seconds to its first piece and to its end."""

    tokens: int
    first_s: float
    whole_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """All requests to one server at one concurrency in one round.

    Attributes:
        round: Number of the round.
        server: Name of the server.
        concurrency: Requests in flight.
        tokens_per_s: Output tokens of all requests.
        first_ms: Median time to the first piece of an answer.
        server_cores: Cores that the server used.
        other_cores: Cores that neither the server nor this client used.
    """

    round: int
    server: str
    concurrency: int
    tokens_per_s: float
    first_ms: float
    server_cores: float
    other_cores: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Tokens per second of the first server over those of another, over the pairs of runs that count."""

    peer: str
    concurrency: int
    pairs: int
    thrown_away: int
    median: float | None
    lowest: float | None
    highest: float | None


def body(server: Server, seed: int, tokens: int, size: int) -> bytes:
    """A request with an image and words that no other has.

    Args:
        server: For whom; its model is known.
        seed: Number of the request.
        tokens: Tokens of the answer.
        size: Side of the image in pixels.
    """
    dice = np.random.default_rng(seed)
    file = io.BytesIO()
    pixels = dice.integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    words = dice.permutation(QUESTION.split())
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": f"{seed} {' '.join(words)}"},
    ]
    document = {
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        # Extensions with which an answer has exactly so many tokens; servers without them ignore these.
        "ignore_eos": True,
        "min_tokens": tokens,
    }
    return json.dumps(document).encode()


async def ask(client: httpx.AsyncClient, request: bytes, tokens: int) -> Answer:
    """Sends a request and reads its answer to the end.

    Raises:
        BenchmarkError: It was refused, or its answer has another number of tokens.
    """
    begin = time.perf_counter()
    first, usage, pieces = None, None, 0
    headers = {"content-type": "application/json"}
    async with client.stream("POST", CHAT, content=request, headers=headers) as response:
        if response.status_code != httpx.codes.OK:
            raise BenchmarkError(f"{response.status_code}: {(await response.aread())[:300]!r}")
        if "text/event-stream" in response.headers.get("content-type", ""):
            async for document in _events(response):
                usage = document.get("usage") or usage
                texts = [choice["delta"].get("content") for choice in document.get("choices", [])]
                if any(texts):
                    first = first or time.perf_counter() - begin
                    pieces += 1
        else:
            usage = json.loads(await response.aread()).get("usage")
    whole = time.perf_counter() - begin
    found = usage["completion_tokens"] if usage else pieces
    if found != tokens:
        raise BenchmarkError(f"an answer has {found} tokens instead of {tokens}")
    return Answer(found, first or whole, whole)


async def _events(response: httpx.Response) -> Any:
    async for line in response.aiter_lines():
        if line.startswith("data:") and line != "data: [DONE]":
            document = json.loads(line.removeprefix("data:"))
            if "error" in document:
                raise BenchmarkError(str(document["error"])[:300])
            yield document


def process_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """Processor time of a process and all its descendants, in seconds; those that have ended do not count."""
    ticks, waiting = 0, [pid]
    while waiting:
        folder = proc / str(waiting.pop())
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def machine_seconds(stat: Path = Path("/proc/stat")) -> float:
    """Processor time of everything on this machine, in seconds, with what other virtual machines took."""
    fields = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


async def measure(
    server: Server, concurrency: int, number: int, seeds: Iterator[int], options: argparse.Namespace
) -> Run:
    """Runs a closed loop against one server."""
    requests = [
        body(server, next(seeds), options.tokens, options.image_size)
        for _ in range(options.requests)
    ]
    answers: list[Answer] = []

    async def work(client: httpx.AsyncClient) -> None:
        while requests:
            answers.append(await ask(client, requests.pop(), options.tokens))

    async with httpx.AsyncClient(
        base_url=server.url, timeout=options.timeout, trust_env=False
    ) as client:
        before = (machine_seconds(), process_seconds(server.pid), time.process_time())
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(client))
        wall = time.perf_counter() - begin
        after = (machine_seconds(), process_seconds(server.pid), time.process_time())
    machine, theirs, own = (late - early for late, early in zip(after, before, strict=True))
    return Run(
        number,
        server.name,
        concurrency,
        sum(answer.tokens for answer in answers) / wall,
        percentile([answer.first_s * 1e3 for answer in answers], 0.5),
        theirs / wall,
        max(0.0, machine - theirs - own) / wall,
    )


async def named(server: Server, timeout_s: float) -> Server:
    """The server with the name of its model; servers without a list of models take any."""
    async with httpx.AsyncClient(base_url=server.url, timeout=timeout_s, trust_env=False) as client:
        response = await client.get("/v1/models")
    listed = response.json()["data"] if response.status_code == httpx.codes.OK else []
    model = str(listed[0]["id"]) if listed else "model"
    return Server(server.name, server.url, server.pid, model)


async def measure_all(options: argparse.Namespace) -> list[Run]:
    """Warms up all servers and measures them in turns."""
    servers = [await named(server, options.timeout) for server in options.server]
    # Not reproducible on purpose: images of an earlier benchmark may be in a server's caches.
    seeds = itertools.count(time.time_ns())
    for server in servers:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=options.timeout, trust_env=False
        ) as client:
            for _ in range(WARM_UP_REQUESTS):
                request = body(server, next(seeds), options.tokens, options.image_size)
                await ask(client, request, options.tokens)
    shuffled = random.Random(0)
    runs: list[Run] = []
    for number in range(options.rounds):
        for concurrency in options.concurrency:
            order = shuffled.sample(servers, len(servers))
            runs += [await measure(one, concurrency, number, seeds, options) for one in order]
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return runs


def ratios(runs: Sequence[Run], ours: str, limit: float) -> list[Ratio]:
    """The ratios of one server to each other one, per concurrency.

    Args:
        runs: All runs.
        ours: Name of the server that is compared.
        limit: Cores that others may have used.
    """
    by_key = {(run.server, run.concurrency, run.round): run for run in runs}
    result = []
    for peer, concurrency in dict.fromkeys((run.server, run.concurrency) for run in runs):
        if peer == ours:
            continue
        pairs = [
            (by_key[ours, concurrency, run.round], run)
            for run in runs
            if (run.server, run.concurrency) == (peer, concurrency)
        ]
        values = [
            one.tokens_per_s / other.tokens_per_s
            for one, other in pairs
            if max(one.other_cores, other.other_cores) <= limit
        ]
        extremes = (statistics.median(values), min(values), max(values)) if values else (None,) * 3
        result.append(Ratio(peer, concurrency, len(values), len(pairs) - len(values), *extremes))
    return result


def tables(runs: Sequence[Run], found: Sequence[Ratio], ours: str) -> str:
    """Two markdown tables: the ratios, and all runs."""
    lines = [
        f"| {ours} over | concurrency | median | lowest | highest | pairs | thrown away |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        values = (one.median, one.lowest, one.highest)
        shown = " | ".join("none" if value is None else f"{value:.2f}" for value in values)
        lines.append(
            f"| {one.peer} | {one.concurrency} | {shown} | {one.pairs} | {one.thrown_away} |"
        )
    lines += [
        "",
        "| round | server | concurrency | tokens/s | first piece ms | server cores | other cores |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.round + 1} | {run.server} | {run.concurrency} | {run.tokens_per_s:.1f} | {run.first_ms:.0f} "
        f"| {run.server_cores:.2f} | {run.other_cores:.2f} |"
        for run in runs
    ]
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, checking that numbers are in range and addresses are loopback."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--server", nargs=3, action="append", required=True, metavar=("NAME", "URL", "PID")
    )
    parser.add_argument("--concurrency", type=between(1, 256), nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=between(1, 10_000), default=32, help="requests per run")
    parser.add_argument("--rounds", type=between(1, 100), default=3)
    parser.add_argument("--tokens", type=between(1, 4096), default=64, help="tokens of an answer")
    parser.add_argument(
        "--image-size", type=between(32, 4096), default=448, help="side of the images in pixels"
    )
    parser.add_argument(
        "--other-cores", type=float, default=0.15, help="cores that others may use during a run"
    )
    parser.add_argument(
        "--timeout", type=between(1, 3600), default=600, help="timeout of one request, s"
    )
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    options = parser.parse_args(argv)
    try:
        options.server = [
            Server(name, loopback_url(url), int(p)) for name, url, p in options.server
        ]
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    if len({server.name for server in options.server}) < max(2, len(options.server)):
        parser.error("--server: at least two, with different names")
    return options


def main(argv: Sequence[str]) -> int:
    """Measures and reports; the status is 1 if a server failed or no pair of runs counts."""
    options = parse(argv)
    try:
        runs = asyncio.run(measure_all(options))
    except ExceptionGroup as group:
        expected, other = group.split(FAILURES)
        if expected is None or other is not None:
            raise
        print(f"no result: {expected.exceptions[0]!r}", file=sys.stderr)
        return 1
    except FAILURES as error:
        print(f"no result: {error!r}", file=sys.stderr)
        return 1
    ours = options.server[0].name
    found = ratios(runs, ours, options.other_cores)
    print(tables(runs, found, ours))
    if options.json:
        document = {"ratios": [asdict(one) for one in found], "runs": [asdict(run) for run in runs]}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if any(one.pairs for one in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
