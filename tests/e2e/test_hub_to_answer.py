"""From a hub id to an answer, in one command: the demo model, fetched from a stand-in of ModelScope on loopback."""

from __future__ import annotations

import os
from pathlib import Path
import signal
import subprocess
import sys

from inference_service.demo import MODEL_DIR
from qwenvl import Client
from tests.e2e.conftest import ROOT, Served
from tests.support.hub_stand_in import StandIn, serving
from tests.support.images import draw
from tests.support.ports import free_ports


def test_one_command_downloads_serves_and_answers(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in MODEL_DIR.iterdir() if path.is_file()}
    http_address, grpc_address = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "inference_service.cli", "serve", "org/model"]
    flags = ["--http-address", http_address, "--grpc-address", grpc_address]
    log = tmp_path / "log.txt"
    with serving(StandIn(files)) as hub, log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *flags, "--admin-address", "none", "--cpu-threads", "1"],
            cwd=ROOT,
            env=os.environ
            | {
                "MODELSCOPE_ENDPOINT": hub.endpoint,
                "MODELSCOPE_CACHE": str(tmp_path),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            stdout=output,
            stderr=output,
        )
        served = Served(f"http://{http_address}", grpc_address, process)
        try:
            served.wait_ready()
            with Client(grpc_address) as client:
                names = [model.name for model in client.models()]
                question = "What is in this picture?"
                image = draw("red", "circle").png
                answer = client.chat(question, images=[image], temperature=0).text
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert names == ["org/model", "model"]
    assert "red circle" in answer.lower()
    assert hub.fetched() >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert '"message": "fits"' in log.read_text()  # the words of `qwenvl check`
    assert [line for line in log.read_text().splitlines() if not line.startswith("{")] == []
