"""One running product for all end-to-end tests: `make serve` as the README says, on free ports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
from dataclasses import dataclass
import http.server
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import grpc
import pytest
import requests

from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from tests.support.images import draw
from tests.support.ports import free_ports


ROOT = Path(__file__).parents[2]
MESSAGE_LIMIT = 32 * 2**20
START_TIMEOUT_S = 300


@dataclass(frozen=True)
class Served:
    """A running service with its adapter."""

    http: str
    grpc_target: str
    process: subprocess.Popen[bytes]

    def channel(self) -> grpc.Channel:
        size = [
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
        ]
        return grpc.insecure_channel(self.grpc_target, options=size)

    def info(self) -> admin_pb.GetServerInfoResponse:
        with self.channel() as channel:
            return admin_grpc.AdminServiceStub(channel).GetServerInfo(
                admin_pb.GetServerInfoRequest(), timeout=10
            )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with status {self.process.returncode}")
            try:
                if requests.get(f"{self.http}/ready", timeout=5).status_code == 200:
                    return
            except (requests.ConnectionError, requests.Timeout):
                pass
            time.sleep(0.1)
        raise AssertionError("not ready in time")

    def wait_busy(self, timeout_s: float = 20) -> None:
        """Waits until pages are in use; the engine tells its counters a few times a second."""
        deadline = time.monotonic() + timeout_s
        while self.info().load.kv_pages_used == 0:
            assert time.monotonic() < deadline, "no page is used"
            time.sleep(0.02)

    def wait_idle(self, timeout_s: float = 20) -> admin_pb.GetServerInfoResponse:
        """Waits until no sequence runs and no page is referenced."""
        deadline = time.monotonic() + timeout_s
        while True:
            info = self.info()
            load = info.load
            if load.running_requests == load.waiting_requests == load.kv_pages_used == 0:
                return info
            assert time.monotonic() < deadline, f"still busy: {load}"
            time.sleep(0.05)


class ImageHost(http.server.BaseHTTPRequestHandler):
    """A loopback host of images, and of one redirect to a forbidden address."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("location", "http://169.254.169.254/latest/meta-data")
            self.end_headers()
            return
        body = (
            draw("red", "circle").png
            if self.path == "/red-circle.png"
            else b"<html>no image</html>"
        )
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Tests stay silent."""


@pytest.fixture(scope="session")
def image_host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ImageHost)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def running(command: Sequence[str], log: Path, **environment: str) -> Iterator[Served]:
    """A command that starts both APIs, on free ports, until it is left."""
    http_port, grpc_port, admin_port = free_ports(3)
    addresses = {
        "QWENVL_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
        "QWENVL_GRPC_ADDRESS": f"127.0.0.1:{grpc_port}",
        "QWENVL_ADMIN_ADDRESS": f"127.0.0.1:{admin_port}",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | addresses | environment,
            stderr=output,
            stdout=output,
            start_new_session=True,
        )
    product = Served(f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", process)
    try:
        product.wait_ready()
    except AssertionError as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        raise AssertionError(f"{error}\n{log.read_text()[-4000:]}") from None
    yield product
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        raise AssertionError(f"it does not stop\n{log.read_text()[-8000:]}") from None


def serve_directory(directory: Path, name: str) -> list[str]:
    """`qwenvl serve DIR --dtype float32`."""
    return [
        *(sys.executable, "-m", "inference_service.cli", "serve", str(directory)),
        *("--served-model-name", name, "--dtype", "float32", "--cpu-threads", "1"),
    ]


@pytest.fixture(scope="session")
def made_to_serve(image_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("served") / "log.txt"
    with running(["make", "serve"], log, QWENVL_ALLOWED_MEDIA_DOMAINS=image_host) as product:
        yield product


@pytest.fixture(scope="session")
def of_transformers(image_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model, as the transformers backend serves it."""
    log = tmp_path_factory.mktemp("transformers") / "log.txt"
    command = [sys.executable, "-m", "inference_service.cli", "serve", "--cpu-threads", "1"]
    with running(
        [*command, "--backend", "transformers"], log, QWENVL_ALLOWED_MEDIA_DOMAINS=image_host
    ) as product:
        yield product


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest) -> Served:
    """The demo model; tests that are marked `both_backends` say of which backend."""
    is_native = getattr(request, "param", "native") == "native"
    return request.getfixturevalue("made_to_serve" if is_native else "of_transformers")


@pytest.fixture
def chat(served: Served) -> Iterator[chat_grpc.ChatServiceStub]:
    with served.channel() as channel:
        yield chat_grpc.ChatServiceStub(channel)
