"""The overlay `dev-cpu` with monitoring and traces, started here: its images' programs with its variables and volumes,
but other ports. Where this machine permits it, nothing but the volumes can be written. One request is followed through
metrics, logs and its trace.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
from typing import IO

import pytest
import requests

from tests.e2e.conftest import ROOT
from tests.k8s.manifest_set import Manifests, load
from tests.support.otlp_receiver import Receiver, receiving
from tests.support.pod_filesystem import command_in, why_impossible
from tests.support.ports import free_ports
from tests.support.scrape import Scrape, scrape, until


MODULES = {"inference": "inference_service", "rest-adapter": "rest_adapter"}
"""What the entry point of each image runs."""


class Cluster:
    """Both containers as processes; ports are replaced by free ones, and the Secret by a file."""

    def __init__(self, manifests: Manifests, folder: Path, collector: str) -> None:
        self.key = base64.b64decode(manifests.of_kind("Secret")[0]["data"]["api-keys"]).decode()
        self.folder = folder
        self.keys = folder / "keys"
        self.keys.mkdir()
        (self.keys / "api-keys").write_text(self.key)
        named = (8000, 9090, 9091, 50051, 50052)
        self.ports = dict(zip(named, free_ports(len(named)), strict=True))
        self.ports[4317] = int(collector.rpartition(":")[2])
        self.processes = [self._start(manifests, name) for name in MODULES]

    def _start(self, manifests: Manifests, name: str) -> subprocess.Popen[bytes]:
        pod = manifests.get("Deployment", name)["spec"]["template"]["spec"]
        container = pod["containers"][0]
        variables = manifests.environment(container)
        for variable, value in variables.items():
            found = re.fullmatch(r"(.+):(\d+)", value)
            if found is not None:
                # Both pods have a port 9090 of their own; here the adapter's is 9091.
                other = found[2] == "9090" and name == "rest-adapter"
                port = self.ports[int(found[2]) + other]
                host = found[1].replace("dns:///inference", "dns:///127.0.0.1")
                host = re.sub(r"(?<=http://)[\w.-]+", "127.0.0.1", host)
                variables[variable] = f"{host}:{port}"
        assert "QWENVL_API_KEY_FILE" in variables
        variables |= {"PATH": os.environ["PATH"]}
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", MODULES[name]]
        if why_impossible():
            variables["QWENVL_API_KEY_FILE"] = str(self.keys / "api-keys")
            variables["HOME"] = str(self.folder)
        else:
            root = self.folder / f"root-of-{name}"
            root.mkdir()
            (volume,) = [item["secret"] for item in pod["volumes"] if "secret" in item]
            secrets = {volume["secretName"]: self.keys}
            command = [*command_in(pod, container, secrets, root), *command]
        output: IO[bytes]
        with self.log(name).open("wb") as output:
            return subprocess.Popen(command, env=variables, cwd=ROOT, stderr=output)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def lines(self, name: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log(name).read_text().splitlines()]

    def metrics(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[9090 + (name == 'rest-adapter')]}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[8000]}"

    def close(self) -> list[int]:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(60) for process in self.processes]


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def cluster(tmp_path: Path, collector: Receiver) -> Iterator[Cluster]:
    made = Cluster(load("traced"), tmp_path, collector.endpoint)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


def ready(seen: Scrape) -> bool:
    return seen.value("qwenvl_ready") == 1


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPANS = {
    *("POST /v1/chat/completions", "qwenvl.inference.v1.ChatService/CreateChatCompletion"),
    *("queue", "image_decode", "vision_encode", "prefill", "decode"),
}


@pytest.mark.full
def test_it_answers_the_question_of_the_readme_and_tells_of_it(
    cluster: Cluster, collector: Receiver
) -> None:
    wait_for(cluster)
    image = base64.b64encode((ROOT / "docs" / "shape.png").read_bytes()).decode()
    content = [
        {"type": "text", "text": "What is in this picture?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]
    body = {
        "model": "qwen-vl",
        "temperature": 0,
        "messages": [{"role": "user", "content": content}],
    }
    url = cluster.url + "/v1/chat/completions"
    assert requests.post(url, json=body, timeout=20).status_code == 401
    headers = {"authorization": f"Bearer {cluster.key}", "x-request-id": "a-drill"}
    # The caller traces it, so that it is kept.
    headers["traceparent"] = f"00-{TRACE}-00f067aa0ba902b7-01"
    response = requests.post(url, json=body, headers=headers, timeout=60)
    assert response.json()["choices"][0]["message"]["content"] == "A purple star."
    service = until(cluster.metrics("inference"), is_counted)
    assert service.value("qwenvl_images_total") == 1
    adapter = scrape(cluster.metrics("rest-adapter"))
    name = "http_server_request_duration_seconds_count"
    assert adapter.value(name, http_response_status_code="200", http_request_method="POST") == 1
    assert cluster.close() == [0, 0]
    of_service: dict[str, object] = {}
    ids, words = set(), ("purple", "picture", cluster.key)
    for program in MODULES:
        (line,) = [line for line in cluster.lines(program) if "a-drill" in json.dumps(line)]
        assert line["trace_id"] == TRACE
        ids.add(line["request_id"])
        of_service = line if program == "inference" else of_service
        assert not [word for word in words if word in cluster.log(program).read_text()]
        levels = {line["level"] for line in cluster.lines(program)}
        assert levels <= {"debug", "info"}, cluster.log(program).read_text()
    assert len(ids) == 1
    assert of_service == of_service | {"code": "OK", "images": 1, "finish_reason": "stop"}
    spans = [one for one in collector.spans if one.trace_id == TRACE]
    assert {one.name for one in spans} == SPANS
    assert {one.process for one in spans} == {"inference-service", "rest-adapter"}
    assert not [word for word in words if word.encode() in b"".join(collector.raw)]


@pytest.mark.parametrize("name", MODULES)
def test_a_container_can_write_its_volumes_only(name: str, tmp_path: Path) -> None:
    if why_impossible():
        pytest.skip(why_impossible())
    manifests = load("dev-cpu")
    pod = manifests.get("Deployment", name)["spec"]["template"]["spec"]
    (tmp_path / "keys").mkdir()
    (tmp_path / "root").mkdir()
    (volume,) = [item["secret"] for item in pod["volumes"] if "secret" in item]
    secrets = {volume["secretName"]: tmp_path / "keys"}
    command = command_in(pod, pod["containers"][0], secrets, tmp_path / "root")
    places = ["/tmp", "/", "/etc/qwenvl/keys", "/usr/lib", str(ROOT), "/var/tmp", "/root"]
    places += ["/dev/shm"] if name == "inference" else []
    script = 'for place; do if touch "$place/x" 2>/dev/null; then echo "$place"; fi; done'
    done = subprocess.run(
        [*command, "sh", "-c", script, "sh", *places],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [place for place in places if place in ("/tmp", "/dev/shm")], (
        done.stderr
    )


def is_counted(seen: Scrape) -> bool:
    return seen.value("qwenvl_requests_finished_total", finish_reason="stop") == 1


def wait_for(cluster: Cluster) -> None:
    """Until both pods are ready."""
    address = cluster.metrics("inference")
    until_listening(address)
    until(address, ready, timeout_s=120)
    until_listening(cluster.metrics("rest-adapter"))


def until_listening(address: str) -> None:
    session = requests.Session()
    retry = requests.adapters.Retry(total=None, connect=120, backoff_factor=0.2, backoff_max=1)
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retry))
    assert session.get(f"http://{address}/metrics", timeout=20).status_code == 200
