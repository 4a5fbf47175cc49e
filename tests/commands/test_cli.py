"""`qwenvl serve` as a command: its errors and its end. What it serves is tested end to end."""

from __future__ import annotations

from pathlib import Path
import re
import socket
import subprocess
import sys
import threading

import pytest

from inference_service.commands.console import Console
from inference_service.commands.pair import Pair
from qwenvl.addresses import Address
from tests.support.signals import end_by_a_burst


COMMAND = Path(sys.executable).with_name("qwenvl")
# Others may have the default ports.
FREE = ("--port", "0", "--grpc-address", "127.0.0.1:0")


def qwenvl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "/no/such/model", *FREE], "neither a directory nor a hub id"),
        (["serve", "--max-num-seqs", "none"], "--max-num-seqs"),
        (
            ["serve", "--http-address", "8000x"],
            "--http-address=8000x (QWENVL_HTTP_ADDRESS): must be HOST:PORT",
        ),
        (["fly"], "invalid choice"),
        ([], "required"),
    ],
)
def test_a_wrong_command_ends_at_once_and_says_why(arguments: list[str], says: str) -> None:
    result = qwenvl(*arguments)
    assert result.returncode != 0
    assert says in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", False),
        (b"\x00\x01 no HTTP\r\n\r\n", False),
        (b"", False),
    ],
)
def test_a_server_that_does_not_answer_yet_is_not_ready(answer: bytes, ready: bool) -> None:
    def serve_once() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1])
        addresses = {"http_address": address, "grpc_address": address}
        console = Console("info", "text")
        pair = Pair(addresses, drain_s=0, console=console)
        thread = threading.Thread(target=serve_once)
        thread.start()
        assert pair.is_ready() is ready
        thread.join()
    assert not pair.is_ready()


def test_help_lists_the_fixed_flags() -> None:
    text = qwenvl("serve", "--help").stdout
    for flag in (
        "--grpc-address",
        "--http-address",
        "--served-model-name",
        "--dtype",
        "--device",
        "--max-model-len",
        "--max-num-seqs",
        "--gpu-memory-utilization",
        "--api-key-file",
        "--allowed-media-domains",
        "--allow-local-media-path",
    ):
        assert flag in text


def test_help_is_in_groups_with_choices_and_examples() -> None:
    text = qwenvl("serve", "--help").stdout
    titles = re.findall(r"^(\w[^\n]*):$", text, re.MULTILINE)
    for title in ("REST API", "model", "addresses", "device and memory", "requests", "media"):
        assert title in titles
    assert "--dtype {auto,float32,float16,bfloat16}" in text
    assert "--hub {modelscope,huggingface}" in text
    assert "--max-model-len N " in text
    assert re.search(r"^examples:\n  qwenvl serve  +the embedded demo", text, re.MULTILINE)
    for command in ("chat", "check"):
        assert f"examples:\n  qwenvl {command} " in qwenvl(command, "--help").stdout


def test_the_command_loads_no_torch() -> None:
    code = "import sys, inference_service.cli; assert not {'torch', 'transformers', 'rest_adapter'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


PAIR = """
import sys
from inference_service.commands import pair
from inference_service.commands.console import Console
from qwenvl.addresses import Address
pair.child_command = lambda module: [sys.executable, "-c", "import time; time.sleep(600)"]
nowhere = Address("127.0.0.1", 9)
addresses = {"http_address": nowhere, "grpc_address": nowhere}
environment = {"QWENVL_DRAIN_TIMEOUT_S": "5"}
with pair.Pair(addresses, drain_s=5, console=Console("info", "text")) as both:
    both.start_adapter(environment)
    both.start_service(environment)
    sys.exit(both.run(list))
"""


CHILD = """
import os, sys, time
print(sys.argv[1], os.environ["QWENVL_DRAIN_TIMEOUT_S"], flush=True)
time.sleep(600)
"""


def test_the_adapter_outlives_the_drain_of_the_service() -> None:
    """Its callers hear from the service why a request that takes too long ends."""
    program = PAIR.replace('"import time; time.sleep(600)"', f"{CHILD!r}, module")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout
        told = dict(process.stdout.readline().split() for _ in range(2))
        process.terminate()
    assert float(told[b"inference_service"]) == 5 < float(told[b"rest_adapter"]) < 5 + 15


def test_a_burst_of_signals_stops_both_processes() -> None:
    """`make` and systemd signal the whole group, and a parent passes on what it gets."""
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", PAIR], stderr=subprocess.PIPE) as process:
            assert process.stderr
            assert b"loading" in process.stderr.readline()
            end_by_a_burst(process)
