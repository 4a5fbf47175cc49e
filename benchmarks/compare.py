"""Compares running servers, such as those of two versions of this project on one machine, with `serve.py` in turns.

Every round measures all servers in random order, so that other load on the machine affects each of them; it gives one
ratio per API and concurrency, and the median of the ratios is reported. `--old` and `--new` may be given several times:
two processes of one version differ too, and their ratio, the control, is what the machine adds. A server of version 0.2
needs the client of that version, which works with later servers too: `--client OLD_CHECKOUT/benchmarks/serve.py`.
Arguments after `--` are passed to the client.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
import os
from pathlib import Path
import random
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
    """A ratio of tokens per second over all rounds: of new to old servers or, for the control, of old to old ones."""

    what: str
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
        # The client's own checkout, not the installed version.
        checkout = client.resolve().parent.parent
        path_of = os.pathsep.join([str(checkout), str(checkout / "protos")])
        subprocess.run(
            [*command, *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path_of},
        )
        rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    # The column was called `door` in version 0.2.
    return {
        (row["concurrency"], row.get("api") or row["door"]): row["tokens_per_s"] for row in rows
    }


Figures = Sequence[Mapping[Key, float]]
"""One mapping for each server of a version."""


def ratios(rounds: Sequence[tuple[Figures, Figures]]) -> list[Ratio]:
    """The ratios of (old, new) figures, per concurrency and API, in the order of the first round."""
    pairs: dict[str, list[tuple[Mapping[Key, float], Mapping[Key, float]]]]
    pairs = {"new / old": [(_mean(old), _mean(new)) for old, new in rounds]}
    for number in range(1, len(rounds[0][0])):
        name = "old / old" if number == 1 else f"old {number + 1} / old"
        pairs[name] = [(old[0], old[number]) for old, _ in rounds]
    result = []
    for what, figures in pairs.items():
        for key in figures[0][0]:
            values = [after[key] / before[key] for before, after in figures]
            result.append(Ratio(what, *key, statistics.median(values), min(values), max(values)))
    return result


def _mean(figures: Figures) -> dict[Key, float]:
    return {key: statistics.fmean(one[key] for one in figures) for key in figures[0]}


def table(lines: Sequence[Ratio]) -> str:
    """The ratios as a markdown table."""
    head = "| tokens/s | concurrency | API | median | lowest | highest |\n|---|---|---|---|---|---|"
    body = [
        f"| {line.what} | {line.concurrency} | {line.api} "
        f"| {line.median:.3f} | {line.lowest:.3f} | {line.highest:.3f} |"
        for line in lines
    ]
    return "\n".join([head, *body])


def main(argv: Sequence[str]) -> int:
    """Measures the servers in turns and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("--old", "--new"):
        parser.add_argument(
            name, nargs=2, metavar=("REST_URL", "GRPC_TARGET"), action="append", required=True
        )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--client", type=Path, default=CLIENT, help="the serve.py to run")
    parser.add_argument("arguments", nargs="*", help="arguments of the client, after --")
    options = parser.parse_args(argv)
    servers = [*options.old, *options.new]
    shuffled = random.Random(0)
    rounds = []
    for number in range(options.rounds):
        order = shuffled.sample(range(len(servers)), len(servers))
        measured = {
            index: measure(options.client, servers[index], options.arguments) for index in order
        }
        figures = [measured[index] for index in range(len(servers))]
        rounds.append((figures[: len(options.old)], figures[len(options.old) :]))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    print(table(ratios(rounds)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
