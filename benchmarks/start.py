"""Measures how long `qwenvl serve` takes until both APIs are ready, beside the import of torch.

    python benchmarks/start.py                             the demo model
    python benchmarks/start.py MODEL --against ../before   and another checkout, in turn
    python benchmarks/start.py --rounds 9 -- --device cpu  further flags of qwenvl serve

Every round imports torch in a process of its own, then starts each checkout on free ports and stops it. Prints a
markdown table: for each checkout the median over the rounds of the time to the line that says that it is ready, over
that of `import torch` in the same round, with the lowest and the highest, and the median in seconds. Only the ratios
mean something where others use the machine too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import signal
import socket
import statistics
import subprocess
import sys
import time
from typing import Final


HERE: Final = Path(__file__).resolve().parents[1]
_READY: Final = "ready: "
_STOP_S: Final = 30.0


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="model directory (default: the demo model)")
    parser.add_argument("--against", type=Path, action="append", default=[], help="a checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("flags", nargs="*", help="flags of qwenvl serve, after --")
    options = parser.parse_args(argv)
    flags = [options.model, *options.flags] if options.model else options.flags
    trees = [HERE, *(tree.resolve() for tree in options.against)]
    imports: list[float] = []
    starts: dict[Path, list[float]] = {tree: [] for tree in trees}
    for number in range(options.rounds + 1):
        took = time_import()
        times = {tree: time_start(tree, flags) for tree in trees}
        if number:  # the first round fills the page cache
            imports.append(took)
            for tree, seconds in times.items():
                starts[tree].append(seconds)
    print(f"`import torch`: {statistics.median(imports):.2f} s")
    print("| checkout | ratio | lowest | highest | seconds |\n|---|---|---|---|---|")
    for tree, found in starts.items():
        ratios = [seconds / took for seconds, took in zip(found, imports, strict=True)]
        figures = (statistics.median(ratios), min(ratios), max(ratios), statistics.median(found))
        print(f"| {tree.name} |", *(f"{figure:.2f} |" for figure in figures))


def time_import() -> float:
    """Seconds of a process that imports torch and ends."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", "import torch"], check=True)
    return time.monotonic() - begin


def time_start(tree: Path, flags: Sequence[str]) -> float:
    """Seconds from the command to the line that says that the APIs of a checkout are ready.

    Raises:
        RuntimeError: It ended before.
    """
    ports = free_ports("http", "grpc", "admin")
    addresses = [f"--{name}-address=127.0.0.1:{port}" for name, port in ports]
    command = [sys.executable, "-P", "-m", "inference_service.cli", "serve", *addresses, *flags]
    environment = os.environ | {"PYTHONPATH": f"{tree}:{tree / 'protos'}"}
    begin = time.monotonic()
    with subprocess.Popen(
        command, cwd=tree, env=environment, stderr=subprocess.PIPE, text=True
    ) as served:
        assert served.stderr is not None
        said = []
        try:
            for line in served.stderr:
                said.append(line)
                if _READY in line:
                    return time.monotonic() - begin
        finally:
            served.send_signal(signal.SIGINT)
            served.communicate(timeout=_STOP_S)
    raise RuntimeError("the service did not start:\n" + "".join(said))


def free_ports(*names: str) -> list[tuple[str, int]]:
    """Names with ports that nobody uses now."""
    with_sockets = [(name, socket.create_server(("127.0.0.1", 0))) for name in names]
    ports = [(name, opened.getsockname()[1]) for name, opened in with_sockets]
    for _, opened in with_sockets:
        opened.close()
    return ports


if __name__ == "__main__":
    main()
