"""One call can be followed by its ids through the logs of all processes."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, replace
import hashlib
import json
import os
from pathlib import Path
import re
import socket
import subprocess
import sys
import time
from typing import Any

import grpc
import pytest
import requests

from inference_service.backend.served_model import ServedModel
from inference_service.demo import MODEL_DIR
from inference_service.engine_client.child import DEFAULT_COMMAND
from inference_service.engine_protocol import wire
from inference_service.serving import engine_config
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from tests.grpc_api.asking import spec_of
from tests.grpc_api.conftest import model_dir  # noqa: F401 - a fixture
from tests.support.ports import free_port


ROOT = Path(__file__).parents[2]
BOUND_S = 60
SECRET = "secret-question"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {
    "x-request-id": "of-the-gateway",
    "traceparent": f"00-{TRACE}-{SPAN}-01",
    "authorization": "Bearer secret-key",
}
OF_THE_HEADERS = {
    "client_request_id": "of-the-gateway",
    "trace_id": TRACE,
    "span_id": SPAN,
    "caller": hashlib.sha256(b"secret-key").hexdigest()[:12],
}


@dataclass(frozen=True)
class Program:
    """A running process and the file that it logs to."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match in its log, once it is there."""
        deadline = time.monotonic() + BOUND_S
        while (match := re.search(pattern, self.log.read_text())) is None:
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return match

    def access_line(self) -> dict[str, Any]:
        """The line that it writes when a call has ended."""
        line: dict[str, Any] = json.loads(self.wait_for(r'\{.*"message": "call".*\}')[0])
        return line


@contextlib.contextmanager
def running(log: Path, *command: str) -> Iterator[Program]:
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stderr=output) as process:
        try:
            yield Program(process, log)
        finally:
            process.kill()


@pytest.fixture
def service(model_dir: Path, tmp_path: Path) -> Iterator[tuple[Program, str]]:  # noqa: F811
    """The service around an echo engine, and its address."""
    command = (sys.executable, "-m", "tests.grpc_api.echo_front", str(model_dir))
    with running(tmp_path / "service.log", *command) as program:
        port = program.wait_for(r"port (\d+)\n")[1]
        yield program, f"127.0.0.1:{port}"


@pytest.fixture
def adapter(service: tuple[Program, str], tmp_path: Path) -> Iterator[tuple[Program, str]]:
    """The adapter in front of the service, and its URL."""
    port = free_port()
    flags = ("--http-address", f"127.0.0.1:{port}", "--grpc-target", service[1])
    command = (sys.executable, "-m", "rest_adapter", *flags, "--log-format", "json")
    with running(tmp_path / "adapter.log", *command) as program:
        program.wait_for("REST listens")
        yield program, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("request_id", ["mine", None])
@pytest.mark.parametrize("stream", [True, False])
def test_a_rest_call_is_found_in_both_logs(
    service: tuple[Program, str],
    adapter: tuple[Program, str],
    request_id: str | None,
    stream: bool,
) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": SECRET}], "stream": stream}
    if request_id is not None:
        body["request_id"] = request_id
    url = f"{adapter[1]}/v1/chat/completions"
    answer = requests.post(url, json=body, headers=HEADERS, timeout=BOUND_S)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "of-the-gateway"
    of_adapter, of_service = adapter[0].access_line(), service[0].access_line()
    assert of_adapter["request_id"] == of_service["request_id"]
    assert request_id in (None, of_service["request_id"])
    for line, process in ((of_adapter, "rest-adapter"), (of_service, "inference-service")):
        assert line | OF_THE_HEADERS | {"process": process, "level": "info"} == line
    assert of_adapter["status"] == 200
    assert of_service["code"] == "OK"
    for program, _ in (service, adapter):
        assert "secret" not in program.log.read_text()


def test_a_call_without_ids_of_the_client_is_found_in_both_logs(
    service: tuple[Program, str], adapter: tuple[Program, str]
) -> None:
    """Also one whose message has no request id; the client's id is logged only if there is one."""
    answer = requests.get(f"{adapter[1]}/v1/models", timeout=BOUND_S)
    assert answer.status_code == 200, answer.text
    for program, _ in (service, adapter):
        line = program.access_line()
        assert line["request_id"] == answer.headers["x-request-id"]
        assert not {"client_request_id", "caller", "trace_id", "span_id"} & line.keys()


def test_a_grpc_call_is_found_in_the_log(service: tuple[Program, str]) -> None:
    request = chat_pb.CreateChatCompletionRequest(spec=spec_of(SECRET, request_id="mine"))
    with grpc.insecure_channel(service[1]) as channel:
        chat_grpc.ChatServiceStub(channel).CreateChatCompletion(
            request, metadata=tuple(HEADERS.items()), timeout=BOUND_S
        )
    line = service[0].access_line()
    assert line | OF_THE_HEADERS | {"request_id": "mine", "code": "OK"} == line
    assert line["method"] == "/qwenvl.inference.v1.ChatService/CreateChatCompletion"
    assert "secret" not in service[0].log.read_text()


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_the_engine_logs_as_the_front_does(log_format: str) -> None:
    ours, theirs = socket.socketpair()
    settings = ServiceSettings(log_format=log_format)
    config = replace(
        engine_config(settings, ServedModel.load(MODEL_DIR, ("demo",))), model_dir="/no/such/model"
    )
    with ours, theirs:
        process = subprocess.Popen(
            [*DEFAULT_COMMAND, "--fd", str(theirs.fileno()), "--parent", str(os.getpid())],
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        ours.sendall(wire.encode(wire.Start(config)))
        _, errors = process.communicate(timeout=BOUND_S)
    first = errors.decode().splitlines()[0]
    if log_format == "json":
        line = json.loads(first)
        assert (line["process"], line["pid"], line["level"]) == ("engine", process.pid, "error")
        assert line["message"] == "the model cannot be loaded"
    else:
        assert f" ERROR engine[{process.pid}] inference_service.engine.process: " in first
