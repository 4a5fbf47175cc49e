"""Compares two running servers, such as two versions of this project on one machine, with `serve.py` in turns.

Rounds alternate between the servers so that other load on the machine affects both; every round gives one ratio per
API and concurrency, and the median of the ratios is reported. A server of version 0.2 needs the client of that
version, which works with later servers too: `--client OLD_CHECKOUT/benchmarks/serve.py`. Arguments after `--` are
passed to the client.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
from typing import Any


CLIENT = Path(__file__).with_name("serve.py")
Key = tuple[int, str]
"""(concurrency, API)."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Tokens per second of the new server over those of the old one, over all rounds."""

    concurrency: int
    api: str
    median: float
    lowest: float
    highest: float


def measure(client: Path, server: Sequence[str], arguments: Sequence[str]) -> dict[Key, float]:
    """Runs the client once; returns tokens per second.

    Args:
        client: The `serve.py` to run.
        server: REST URL and gRPC target.
        arguments: Further arguments of the client.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        addresses = ["--rest-url", server[0], "--grpc-target", server[1]]
        command = [sys.executable, str(client), *addresses, "--pairs", "1", "--json", str(path)]
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    # The column was called `door` in version 0.2.
    return {
        (row["concurrency"], row.get("api") or row["door"]): row["tokens_per_s"] for row in rows
    }


def ratios(rounds: Sequence[tuple[Mapping[Key, float], Mapping[Key, float]]]) -> list[Ratio]:
    """The ratios of (old, new) figures, per concurrency and API, in the order of the first round."""
    result = []
    for key in rounds[0][0]:
        values = [new[key] / old[key] for old, new in rounds]
        result.append(Ratio(*key, statistics.median(values), min(values), max(values)))
    return result


def table(lines: Sequence[Ratio]) -> str:
    """The ratios as a markdown table."""
    head = "| concurrency | API | tokens/s, new / old: median | lowest | highest |\n|---|---|---|---|---|"
    body = [
        f"| {line.concurrency} | {line.api} | {line.median:.3f} | {line.lowest:.3f} | {line.highest:.3f} |"
        for line in lines
    ]
    return "\n".join([head, *body])


def main(argv: Sequence[str]) -> int:
    """Measures both servers in turns and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("--old", "--new"):
        parser.add_argument(name, nargs=2, metavar=("REST_URL", "GRPC_TARGET"), required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", type=Path, default=CLIENT, help="the serve.py to run")
    parser.add_argument("arguments", nargs="*", help="arguments of the client, after --")
    options = parser.parse_args(argv)
    rounds = []
    for number in range(options.rounds):
        servers = [options.old, options.new]
        order = servers if number % 2 == 0 else servers[::-1]
        figures = [measure(options.client, server, options.arguments) for server in order]
        old, new = figures if number % 2 == 0 else figures[::-1]
        rounds.append((old, new))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    print(table(ratios(rounds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
