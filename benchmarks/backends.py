"""Compares this project's engine with the transformers backend on one model: `peers.py` over two servers of its own.

Starts `qwenvl serve MODEL` twice, with `--backend native` and `--backend transformers`, on free ports, measures both in
turns, and stops them. Arguments after `--` are passed to `peers.py`, which tells what the columns mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from benchmarks import peers


ROOT = Path(__file__).parents[1]
BACKENDS = ("native", "transformers")
_START_S = 600.0


def free_address() -> str:
    """An address of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def serving(backend: str, arguments: Sequence[str]) -> Iterator[list[str]]:
    """A server with a backend, as `peers.py` wants it on its command line, until the end of the block."""
    rest, grpc, admin = (free_address() for _ in range(3))
    # A line for every request is work that says nothing here.
    environment = (
        {"QWENVL_LOG_LEVEL": "warning"}
        | os.environ
        | {
            "QWENVL_HTTP_ADDRESS": rest,
            "QWENVL_GRPC_ADDRESS": grpc,
            "QWENVL_ADMIN_ADDRESS": admin,
            "QWENVL_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]),
        }
    )
    command = [sys.executable, "-P", "-m", "inference_service.cli", "serve", *arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, cwd=ROOT)
    try:
        wait_ready(f"http://{rest}/ready", process)
        yield ["--server", backend, f"http://{rest}", str(process.pid)]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Returns when a server is ready; raises SystemExit if it ends or is never ready."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(0.2)
    raise SystemExit(f"the server is not ready after {_START_S:.0f} s")


def main(argv: Sequence[str]) -> int:
    """Starts both servers and prints the tables of `peers.py`; returns its status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", help="model of one of our families; none = the demo")
    end = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:end])
    model = [options.model] if options.model else []
    with contextlib.ExitStack() as servers:
        named = [servers.enter_context(serving(backend, model)) for backend in BACKENDS]
        return peers.main([*named[0], *named[1], *argv[end + 1 :]])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
