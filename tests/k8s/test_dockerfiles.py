"""The images: linted, pinned, not root, and the adapter's without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import requires
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

from tests.k8s import manifest_policy
from tests.k8s.manifest_set import ROOT, load


NAMES = {"inference": "inference-service", "rest-adapter": "rest-adapter"}
"""Image and Deployment, and the program that runs there."""
TRITON = Path(sys.prefix) / "triton"
"""Where the tests of GPU kernels have it; see tests/kernels/gpu/install_triton.py."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Dockerfile:
    """The instructions of a file, continued lines joined."""

    instructions: list[tuple[str, str]]

    @classmethod
    def read(cls, name: str) -> Dockerfile:
        text = path_of(name).read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        return cls([(line.split()[0], " ".join(line.split()[1:])) for line in lines])

    def all(self, instruction: str) -> list[str]:
        return [value for key, value in self.instructions if key == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]


def path_of(name: str) -> Path:
    return ROOT / "docker" / f"{name}.Dockerfile"


def container_of(name: str) -> dict:
    deployment = load("base").get("Deployment", name)
    return deployment["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_has_nothing_to_say(name):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, path_of(name)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_there_is_a_dockerfile_for_every_image_of_the_manifests():
    images = {
        container["image"].rpartition(":")[0].rpartition("/")[2]
        for workload in load("base").workloads()
        for container in workload.containers
    }
    assert images == {path.name.removesuffix(".Dockerfile") for path in (ROOT / "docker").iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_the_base_is_pinned_and_is_the_python_of_the_project(name):
    dockerfile = Dockerfile.read(name)
    # An argument, so that it can be pinned by digest without a change of the file.
    assert [base.split()[0] for base in dockerfile.all("FROM")] == ["${BASE}", "${BASE}"]
    wanted = PROJECT["requires-python"].removeprefix(">=")
    base = dockerfile.all("ARG")[0].removeprefix("BASE=")
    assert re.fullmatch(rf"python:{re.escape(wanted)}\.\d+-slim-\w+", base)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_as_the_user_of_the_manifests(name):
    user, _, group = Dockerfile.read(name).last("USER").partition(":")
    context = load("base").get("Deployment", name)["spec"]["template"]["spec"]["securityContext"]
    assert (int(user), int(group)) == (context["runAsUser"], context["runAsGroup"])
    assert int(user) > 0


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_the_program_on_the_port_of_the_manifests(name):
    dockerfile = Dockerfile.read(name)
    assert json.loads(dockerfile.last("ENTRYPOINT")) == [NAMES[name]]
    assert NAMES[name] in PROJECT["scripts"]
    assert int(dockerfile.last("EXPOSE")) == container_of(name)["ports"][0]["containerPort"]
    variables = dict(re.findall(r"(QWENVL_\w+)=(\S+)", " ".join(dockerfile.all("ENV"))))
    known = manifest_policy.SETTINGS[container_of(name)["name"]].model_fields
    assert {key.removeprefix("QWENVL_").lower() for key in variables} <= set(known)
    assert [value.rpartition(":")[2] for value in variables.values()] == [dockerfile.last("EXPOSE")]


def test_the_driver_of_the_node_is_found():
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(Dockerfile.read("inference").all("ENV"))))
    # Mounted there without a runtime hook (GKE); a hook mounts what the capabilities say.
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert set(variables["NVIDIA_DRIVER_CAPABILITIES"].split(",")) == {"compute", "utility"}
    assert "NVIDIA_VISIBLE_DEVICES" not in variables, "who assigns GPUs sets it"


@pytest.mark.parametrize("name", NAMES)
def test_torch_has_a_layer_that_a_change_of_the_code_keeps(name):
    steps = [f"{key} {value}" for key, value in Dockerfile.read(name).instructions]
    code = next(i for i, step in enumerate(steps) if step.startswith("COPY protos"))
    torch = [i for i, step in enumerate(steps) if step.endswith("torch")]
    assert [i < code for i in torch] == ([True] if name == "inference" else [])


@pytest.mark.parametrize("name", NAMES)
def test_every_install_keeps_to_the_constraints(name):
    installs = re.findall(r"pip install ([^&]*)", " ".join(Dockerfile.read(name).all("RUN")))
    assert installs
    assert all(install.startswith("-c constraints.txt ") for install in installs)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_copies_is_there_and_reaches_the_builder(name):
    sent = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copies = [copy.split() for copy in Dockerfile.read(name).all("COPY") if "--from" not in copy]
    sources = {source for copy in copies for source in copy[:-1]}
    assert sources <= sent
    assert all((ROOT / source).exists() for source in sent)


def test_every_package_of_the_inference_image_is_copied():
    copied = " ".join(Dockerfile.read("inference").all("COPY"))
    assert {"protos", "inference_service"} <= set(copied.split())


def packages_of(name: str) -> dict[str, str]:
    """The Debian packages of the image, with their versions."""
    stage = Dockerfile.read(name).instructions
    last = max(index for index, (key, _) in enumerate(stage) if key == "FROM")
    text = " ".join(value for key, value in stage[last:] if key == "RUN")
    found = re.findall(r"apt-get install -y --no-install-recommends ([^&]*)", text)
    return dict(item.split("=", 1) for part in found for item in part.split())


def test_the_image_with_kernels_has_what_compiles_them():
    assert set(packages_of("inference")) == {"gcc", "libc6-dev"}
    assert packages_of("rest-adapter") == {}


def test_what_triton_compiles_needs_no_other_headers():
    backend = TRITON / "triton" / "backends" / "nvidia"
    if not backend.is_dir() or shutil.which("gcc") is None:
        pytest.skip("no triton, or no gcc")
    sources = [path for path in backend.rglob("*") if path.suffix in (".c", ".cc", ".cpp")]
    assert {path.suffix for path in sources} == {".c"}, "gcc alone compiles no C++"
    folders = [f"-I{backend / 'include'}", f"-I{sysconfig.get_paths()['include']}"]
    for source in sources:
        asked = ["gcc", "-M", *folders, str(source)]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
        foreign = [
            path
            for path in done.stdout.replace("\\\n", " ").split()[1:]
            if not path.startswith(
                (str(backend), sysconfig.get_paths()["include"], "/usr/include", "/usr/lib/gcc")
            )
        ]
        assert foreign == []


def test_the_adapter_image_holds_no_torch():
    assert "torch" not in path_of("rest-adapter").read_text(encoding="utf-8").lower()
    installed = " ".join(Dockerfile.read("rest-adapter").all("RUN"))
    assert re.findall(r"\.\[[\w,]+\]", installed) == [".[adapter,tracing]"]
    extras = PROJECT["optional-dependencies"]
    names = everything_behind([*PROJECT["dependencies"], *extras["adapter"], *extras["tracing"]])
    assert "fastapi" in names
    assert names.isdisjoint(
        {"torch", "transformers", "numpy", "pillow", "tokenizers", "modelscope"}
    )


def everything_behind(requirements: list[str]) -> set[str]:
    """All distributions that pip would install for these, by the metadata of the installed ones."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        item = waiting.pop()
        name = canonicalize_name(item.name)
        if name in found:
            continue
        found.add(name)
        behind = [Requirement(text) for text in requires(name) or []]
        waiting += [
            need for need in behind if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    return found
