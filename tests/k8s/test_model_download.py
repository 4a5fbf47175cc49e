"""What the pods run to get their model, run here: as rendered, against a stand-in for the hub."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import pytest

from tests.k8s.manifest_set import Manifests, Object, load
from tests.support.hub_stand_in import COMMIT, StandIn, serving


RESOLVE = """
import os
from inference_service.hub.resolve import resolve_model
from inference_service.settings import ServiceSettings
values = ServiceSettings.load({}, os.environ)
print(resolve_model(values.model, values.served_model_name, hub=values.hub, revision=values.revision).directory)
"""


def container_of(manifests: Manifests, name: str) -> Object:
    return next(
        container
        for workload in manifests.workloads()
        for container in workload.containers
        if container["name"] == name
    )


def run_as(
    manifests: Manifests, container: str, command: list[str], volume: Path, endpoint: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command with the variables of a container, its volume at `volume`."""
    variables = {
        name: value.replace("/models", str(volume))
        for name, value in manifests.environment(container_of(manifests, container)).items()
    }
    variables |= {"HF_ENDPOINT": endpoint, "MODELSCOPE_ENDPOINT": endpoint}
    # The repository of the stand-in has another name and another commit.
    variables |= {"QWENVL_MODEL": "org/model", "QWENVL_REVISION": COMMIT}
    variables |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HOME": str(volume)}
    variables |= {"PATH": os.environ["PATH"]}
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(("kustomization", "hub"), [("single-gpu", ""), ("shared", "modelscope")])
def test_the_service_finds_what_was_downloaded_and_a_pod_starts_without_the_hub(
    tmp_path: Path, kustomization: str, hub: str
) -> None:
    manifests = load(kustomization)
    for item in manifests.of_kind("ConfigMap"):
        if hub and "QWENVL_HUB" in item["data"]:
            item["data"]["QWENVL_HUB"] = hub
    program, *rest = container_of(manifests, "model-download")["command"]
    assert program == "qwenvl"
    download = [sys.executable, "-m", "qwenvl.cli", *rest]
    with serving(StandIn()) as stand_in:
        done = run_as(manifests, "model-download", download, tmp_path, stand_in.endpoint)
    assert done.returncode == 0, done.stderr
    nowhere = "http://127.0.0.1:9"
    again = run_as(manifests, "model-download", download, tmp_path, nowhere)
    assert again.returncode == 0, again.stderr
    found = run_as(manifests, "inference", [sys.executable, "-c", RESOLVE], tmp_path, nowhere)
    directory = Path(found.stdout.strip())
    assert f"directory   {directory}\n" in done.stdout, found.stderr
    assert directory.is_relative_to(tmp_path)
    assert COMMIT in directory.parts


def test_a_model_that_is_damaged_on_the_way_never_starts(tmp_path: Path) -> None:
    manifests = load("single-gpu")
    stand_in = StandIn()
    shard = "model-00001-of-00002.safetensors"
    stand_in.listed[shard] = stand_in.files[shard]
    stand_in.files[shard] = stand_in.files[shard][:-1] + b"\0"
    command = [sys.executable, "-m", "qwenvl.cli", "download", "--if-absent"]
    with serving(stand_in):
        done = run_as(manifests, "model-download", command, tmp_path, stand_in.endpoint)
    assert done.returncode == 1
    assert "SHA-256" in done.stderr
