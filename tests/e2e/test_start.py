"""From the command to the first answer and to its end, as processes: `qwenvl serve` in the worst directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
import requests

from inference_service.demo import MODEL_DIR
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from tests.e2e.conftest import ROOT
from tests.support.examples import one_in
from tests.support.hub_stand_in import StandIn, serving
from tests.support.ports import free_port, free_ports


QWENVL = Path(sys.executable).with_name("qwenvl")
TIMEOUT_S = 120
HOSTILE = (
    *(
        "torch",
        "json",
        "numpy",
        "grpc",
        "asyncio",
        "argparse",
        "pydantic",
        "uvicorn",
        "safetensors",
    ),
    *("sitecustomize", "usercustomize", "inference_service", "rest_adapter", "qwenvl", "readline"),
)
PROXIES = {
    f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all", "grpc")
} | {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9", "no_proxy": ""}


class Program:
    """A running command and what it has said so far."""

    def __init__(self, *command: str | Path, cwd: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=own_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str) -> re.Match[str]:
        found: list[re.Match[str]] = []

        def seen() -> bool:
            found.extend(m for line in list(self.lines) if (m := re.search(pattern, line)))
            return bool(found) or self.process.poll() is not None

        until(seen)
        assert found, "\n".join(self.lines)
        return found[0]

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        status = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return status

    def said(self) -> list[str]:
        """What people see: no log lines, no times of imports."""
        noise = re.compile(r"import time:|\d{4}-\d\d-\d\dT|$")
        return [line for line in self.lines if not noise.match(line)]


@contextlib.contextmanager
def program(*command: str | Path, cwd: Path, **environment: str) -> Iterator[Program]:
    running = Program(*command, cwd=cwd, **environment)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.end()


def own_environment() -> dict[str, str]:
    """Without this machine's proxies and settings, and with the tested sources.

    Nor with a measurement of coverage, whose imports would come before the program's own.
    """
    foreign = ("QWENVL_", "COVERAGE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}


def until(condition: Callable[[], bool], seconds: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [QWENVL, *arguments],
        cwd=cwd,
        env=own_environment() | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model's directory with modules that leave a mark when they are imported."""
    directory = tmp_path / "model"
    shutil.copytree(MODEL_DIR, directory)
    for name in HOSTILE:
        code = f"open({str(tmp_path)!r} + '/ran-{name}', 'w')\nraise SystemExit('hostile {name}')\n"
        (directory / f"{name}.py").write_text(code)
        (directory / name).mkdir()
        for module in ("__init__", "__main__"):
            (directory / name / f"{module}.py").write_text(code)
    return directory


def test_a_models_directory_brings_no_code_and_no_proxy_is_asked(
    hostile: Path, tmp_path: Path
) -> None:
    http_port, grpc_port, _ = free_ports(3)  # the last one is that of the admin API
    addresses = ["--port", str(http_port), "--grpc-address", f"127.0.0.1:{grpc_port}"]
    command = ["serve", ".", *addresses, "--cpu-threads", "1", "--log-format", "text"]
    with program(QWENVL, *command, cwd=hostile, **PROXIES) as served:
        example = served.wait_for(r"^try +(.+)")[1]
        banner = "\n".join(served.said())
        for line in (
            r"^ready: qwen-vl-serving \d",
            r"^model +model \(qwen3_vl, 4096 tokens",
            r"^device +cpu, float32$",
            r"^memory +weights 13\.83 MiB, KV cache \d",
            rf"^REST +http://127\.0\.0\.1:{http_port}/v1$",
            rf"^gRPC +127\.0\.0\.1:{grpc_port}$",
            rf"^admin +127\.0\.0\.1:{grpc_port + 1}$",
            rf"^page +http://127\.0\.0\.1:{http_port}/$",
        ):
            assert re.search(line, banner, re.MULTILINE), banner
        words = shlex.split(example)
        assert words[1:4] == ["chat", "--grpc-target", f"127.0.0.1:{grpc_port}"]
        answered = run(*words[1:], cwd=hostile, **PROXIES)
        assert (answered.returncode, answered.stderr) == (0, "")
        assert len(answered.stdout) > 3
        shape = ("--image", str(ROOT / "docs" / "shape.png"), "What is in this picture?")
        seen = run(*words[1:-1], *shape, "--temperature", "0", cwd=hostile, **PROXIES)
        assert (seen.stdout, seen.stderr) == ("A purple star.\n", "")
        url = f"http://127.0.0.1:{http_port}/v1/models"
        assert requests.get(url, timeout=20, proxies={"http": ""}).json()["data"][0]["id"]
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port + 1}") as channel:
            admin_grpc.AdminServiceStub(channel).GetLoad(admin_pb.GetLoadRequest(), timeout=20)
        second_server_says_which_port(hostile, addresses, http_port, served.process.pid)
        served.interrupt()
        assert served.end() == 0
        assert served.said()[-1] == "stopped"
        assert "Traceback" not in "\n".join(served.lines)
    assert [path.name for path in tmp_path.glob("ran-*")] == []


@pytest.mark.parametrize(
    "command",
    [
        [QWENVL, "check"],
        [sys.executable, "-m", "inference_service.cli", "check"],
        [sys.executable, "-m", "inference_service", "--model", "/no/such"],
        [sys.executable, "-m", "rest_adapter", "--check-settings"],
    ],
)
@pytest.mark.parametrize("entry", ["", "."])
def test_a_careless_python_path_brings_no_code_either(
    hostile: Path, tmp_path: Path, command: list[str | Path], entry: str
) -> None:
    """`python -m` and an empty entry of PYTHONPATH put the working directory first."""
    for name in ("inference_service", "rest_adapter", "qwenvl", "sitecustomize", "usercustomize"):
        shutil.rmtree(hostile / name)  # what Python itself imports first
        (hostile / f"{name}.py").unlink()
    path = os.pathsep.join([entry, own_environment()["PYTHONPATH"]])
    with program(*command, cwd=hostile, PYTHONPATH=path) as it:
        it.end()
        assert "hostile" not in "\n".join(it.lines)
    assert [path.name for path in tmp_path.glob("ran-*")] == []


def second_server_says_which_port(
    cwd: Path, addresses: list[str], http_port: int, parent: int
) -> None:
    refused = run("serve", *addresses, cwd=cwd)
    assert refused.returncode == 1
    assert re.fullmatch(
        rf"--http-address=127\.0\.0\.1:{http_port} \(QWENVL_HTTP_ADDRESS\): port {http_port} is in use by"
        r" process (\d+) \(.*rest_adapter.*\); choose another port\n",
        refused.stderr,
    )
    other = run("serve", "--port", "0", *addresses[2:], cwd=cwd)
    assert "--grpc-address=" in other.stderr
    assert "inference_service" in other.stderr
    os.kill(parent, 0)  # the first one goes on


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    one_in(
        3,
        [
            (["--device", "toaster"], {}, "--device=toaster (QWENVL_DEVICE): must be auto, cpu"),
            (
                [],
                {"QWENVL_DEVICE": "cuda:77"},
                "--device=cuda:77 (QWENVL_DEVICE): there is no such GPU",
            ),
            (
                ["--max-model-len", "9999999"],
                {},
                "--max-model-len=9999999 (QWENVL_MAX_MODEL_LEN): exceeds the model's context window of 4096",
            ),
            (
                ["--max-model-len", "4k"],
                {},
                "--max-model-len=4k (QWENVL_MAX_MODEL_LEN): must be a valid",
            ),
            (["--port", "65536"], {}, "--port=65536 (QWENVL_HTTP_ADDRESS): has port 65536"),
            (["--host", "a b"], {}, "--host=a b (QWENVL_HTTP_ADDRESS)"),
            (["--http-address", "x:1", "--port", "2"], {}, "leave out --host and --port"),
            (
                [],
                {"QWENVL_GRPC_ADDRESS": "127.0.0.1:-1"},
                "--grpc-address=127.0.0.1:-1 (QWENVL_GRPC_A",
            ),
            (["--admin-address", "127.0.0.1:{http}"], {}, "is also that of --http-address"),
            (["--grpc-address", "192.0.2.1:1"], {}, "this machine does not have that address"),
            (["--health-address", "no.such.host.invalid:1"], {}, "cannot be resolved"),
            (
                ["--api-key-file", "/no/such"],
                {},
                "--api-key-file=/no/such (QWENVL_API_KEY_FILE): cannot",
            ),
            (
                ["--allowed-media-domains", "not a host"],
                {},
                "--allowed-media-domains=not a host (QWENVL_A",
            ),
            (
                ["--allow-local-media-path", "/x/y"],
                {},
                "--allow-local-media-path=/x/y (QWENVL_ALLOW_LO",
            ),
            ([], {"QWENVL_MAX_BODY_MIB": "0"}, "--max-body-mib=0 (QWENVL_MAX_BODY_MIB): must be"),
            ([], {"QWENVL_GRPC_TARGET": "http://x"}, "--grpc-target=http://x (QWENVL_GRPC_TARGET)"),
            ([], {"QWENVL_MAX_NUM_SEQ": "3"}, "did you mean QWENVL_MAX_NUM_SEQS?"),
            (["/no/such/model"], {}, "cannot serve this model: /no/such/model is neither"),
        ],
    ),
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_opens(
    tmp_path: Path, arguments: list[str], environment: Mapping[str, str], says: str
) -> None:
    http_port = free_port()
    words = [word.format(http=http_port) for word in arguments]
    if not {"--port", "--http-address"} & set(words):
        words = [*words, "--port", str(http_port)]
    defaults = {"QWENVL_GRPC_ADDRESS": "127.0.0.1:0"}
    result = run("serve", *words, cwd=tmp_path, **defaults | dict(environment))
    assert result.returncode in (1, 2)
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_a_taken_port_is_refused_for_every_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--http-address", "--grpc-address", "--admin-address", "--health-address"):
            free = {"QWENVL_HTTP_ADDRESS": "127.0.0.1:0", "QWENVL_GRPC_ADDRESS": "127.0.0.1:0"}
            result = run("serve", flag, address, cwd=tmp_path, **free)
            assert result.returncode == 1
            assert result.stderr.startswith(f"{flag}={address} (QWENVL_")
            assert f"is in use by process {os.getpid()} (" in result.stderr
            assert result.stderr.count("\n") == 1


# ---- Ctrl-C at any moment ----

SERVE = ("serve", "--port", "0", "--grpc-address", "127.0.0.1:0", "--cpu-threads", "1")


HALTING = """
import importlib.abc, os, sys, time

class Halting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == os.environ["HALTS_AT"]:
            print("halted", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Halting())
"""
"""Stands still within the import of a module, until a signal comes."""


@pytest.mark.parametrize(
    ("command", "imported"),
    [
        ("qwenvl", "qwenvl.setting_names"),
        ("qwenvl", "pydantic_core"),
        ("qwenvl", "qwenvl.flags"),
        ("inference-service", "qwenvl.flags"),
        ("rest-adapter", "pydantic_core"),
    ],
)
def test_ctrl_c_while_importing(tmp_path: Path, command: str, imported: str) -> None:
    """Libraries lose a KeyboardInterrupt or wrap it; the end must not depend on them."""
    arguments = SERVE if command == "qwenvl" else ()
    addresses = {"QWENVL_HTTP_ADDRESS": "127.0.0.1:0", "QWENVL_GRPC_ADDRESS": "127.0.0.1:0"}
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HALTING)
    path = os.pathsep.join([str(site), own_environment()["PYTHONPATH"]])
    environment = addresses | {"PYTHONPATH": path, "HALTS_AT": imported}
    with program(QWENVL.with_name(command), *arguments, cwd=tmp_path, **environment) as it:
        it.wait_for("^halted$")
        it.interrupt()
        assert it.end() == 130
        assert it.said() == ["halted", "interrupted"]


@pytest.mark.parametrize("moment", ["^fits$", "grpc listens", "ready:"])
def test_ctrl_c_while_starting_and_serving(tmp_path: Path, moment: str) -> None:
    with program(QWENVL, *SERVE, "--log-format", "text", cwd=tmp_path) as it:
        it.wait_for(moment)
        it.interrupt()
        assert it.end() in (0, 130)
        assert "Traceback" not in "\n".join(it.lines)
        assert it.said()[-1] in ("stopped", "interrupted")


@pytest.mark.parametrize(
    ("command", "hub"),
    [
        ("download", "modelscope"),
        ("download", "huggingface"),
        pytest.param("serve", "modelscope", marks=pytest.mark.full),
    ],
)
def test_ctrl_c_while_downloading(tmp_path: Path, command: str, hub: str) -> None:
    never = threading.Event()
    with serving(StandIn(stall=never)) as running:
        environment = {
            "MODELSCOPE_ENDPOINT": running.endpoint,
            "MODELSCOPE_CACHE": str(tmp_path / "modelscope"),
            "HF_ENDPOINT": running.endpoint,
            "HF_HOME": str(tmp_path / "hf"),
        }
        extra = SERVE[1:] if command == "serve" else ()
        words = (command, "org/model", "--hub", hub, *extra)
        with program(QWENVL, *words, cwd=tmp_path, **environment) as it:
            until(lambda: any(name.endswith(".safetensors") for name in running.fetched()))
            it.interrupt()
            assert it.end() == 130
            never.set()
            assert it.said()[-1].endswith("interrupted")
            assert "Traceback" not in "\n".join(it.lines)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with program(QWENVL, *SERVE, "--log-format", "text", cwd=tmp_path) as it:
        url = it.wait_for(r"^REST +(http\S+)")[1]
        body = {
            "model": "qwen-vl",
            "messages": [{"role": "user", "content": "Go on"}],
            "max_tokens": 3500,
            "min_tokens": 3500,
            "ignore_eos": True,
            "stream": True,
        }
        with requests.post(f"{url}/chat/completions", json=body, stream=True, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            it.interrupt()
            it.wait_for("stopping: running requests have up to 90 s; Ctrl-C again ends them")
            begin = time.monotonic()
            it.interrupt()
            it.end()
            assert time.monotonic() - begin < 60  # the drain would take 90 s
        assert it.said()[-1] == "stopped"
        assert "Traceback" not in "\n".join(it.lines), "\n".join(it.lines)
