"""The two distributions: what the wheels contain, and that the client's needs grpcio and protobuf only."""

from __future__ import annotations

from email.parser import Parser
import importlib.util
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest


ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "protos"
MAX_CLIENT_BYTES = 500_000
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "*.pyc")

# Every module, but those for the programs of the server, which have these libraries.
IMPORT_ALL = """
import importlib, pkgutil, sys, qwenvl
for module in pkgutil.walk_packages(qwenvl.__path__, "qwenvl."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in ("opentelemetry", "pydantic", "prometheus_client"):
            raise
for name in qwenvl.__all__:
    getattr(qwenvl, name)
from qwenvl import Client, ImageError, image, user
from qwenvl.testing import FakeServer
with FakeServer("A cat.") as server, Client(server.target) as client:
    assert client.chat(user("What is it?", image(b"x"))).text == "A cat."
    server.fail("INVALID_IMAGE", field="spec.messages")
    try:
        client.chat("x")
    except ImageError as error:
        assert error.field == "spec.messages"
print("imported from", qwenvl.__file__)
"""


def build(source: Path, target: Path) -> Path:
    """Builds a wheel without the network, as pip does."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-w", str(target), str(source)]
    subprocess.run([*pip, *options], check=True, timeout=300, capture_output=True)
    [wheel] = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(CLIENT, folder / "source", ignore=IGNORED)
    return build(folder / "source", folder / "wheel")


@pytest.fixture(scope="module")
def server_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    for name in ("inference_service", "rest_adapter", "demo_training", "protos"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=IGNORED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    return build(folder / "source", folder / "wheel")


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as archive:
        [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        message = Parser().parsestr(archive.read(path).decode())
    return {key: message.get_all(key, []) for key in message}


def packages_in(wheel: Path) -> set[str]:
    return {name.split("/")[0] for name in names_in(wheel) if ".dist-info" not in name}


def project(path: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return found


def test_both_have_one_version_and_the_server_needs_exactly_that_client() -> None:
    client, server = project(CLIENT / "pyproject.toml"), project(ROOT / "pyproject.toml")
    assert client["version"] == server["version"]
    assert client["requires-python"] == server["requires-python"]
    assert server["dependencies"] == [f"qwenvl-client=={client['version']}"]


def test_the_client_is_small_and_complete(client_wheel: Path) -> None:
    assert client_wheel.stat().st_size < MAX_CLIENT_BYTES
    assert packages_in(client_wheel) == {"qwenvl"}
    sources = {
        str(path.relative_to(CLIENT))
        for path in (CLIENT / "qwenvl").rglob("*")
        if path.suffix in {".py", ".pyi", ".proto", ".typed"} or path.name == "py.typed"
    }
    assert {name for name in names_in(client_wheel) if name.startswith("qwenvl/")} == sources
    assert any(name.endswith("/licenses/LICENSE") for name in names_in(client_wheel))


def test_the_client_needs_grpcio_and_protobuf_only(client_wheel: Path) -> None:
    metadata = metadata_of(client_wheel)
    assert metadata["Name"] == ["qwenvl-client"]
    needed = {re.split("[<>=,]", item)[0] for item in metadata["Requires-Dist"]}
    assert needed == {"grpcio", "protobuf"}


def test_the_server_contains_nothing_of_the_client(server_wheel: Path) -> None:
    assert packages_in(server_wheel) == {"inference_service", "rest_adapter"}
    assert "qwenvl-client" in " ".join(metadata_of(server_wheel)["Requires-Dist"])
    assert "inference_service/demo/model/model.safetensors" in names_in(server_wheel)
    assert "inference_service/py.typed" in names_in(server_wheel)


def test_the_server_contains_the_whole_playground_with_its_licences(server_wheel: Path) -> None:
    folders = ("rest_adapter/playground/page/", "rest_adapter/playground/vendor/")
    sources = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    assert "rest_adapter/playground/vendor/LICENSE.preact.txt" in sources
    assert {name for name in names_in(server_wheel) if name.startswith(folders)} == sources


def install(wheel: Path, python: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    command = [*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)]
    # A search path to this checkout would make pip find the distributions as installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, timeout=120, capture_output=True, env=environment)


@pytest.fixture(scope="module")
def bare(client_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the client, grpcio and protobuf, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    install(client_wheel, folder / "bin" / "python")
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "google").mkdir()
    for name in ("grpc", "google.protobuf", "google._upb", "typing_extensions"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        places = [*(spec.submodule_search_locations or ()), spec.origin or ""]
        found = Path(places[0])
        target = packages / name.replace(".", "/")
        target.with_name(found.name).symlink_to(found)
    return folder / "bin"


def run(bare: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(bare / program), *arguments]
    environment = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd="/"
    )


def test_the_client_works_in_a_bare_environment(bare: Path) -> None:
    done = run(bare, "python", "-W", "error", "-c", IMPORT_ALL)
    assert done.returncode == 0, done.stderr
    assert str(bare.parent) in done.stdout


@pytest.mark.parametrize("command", ["chat", "serve", "--help", ""])
def test_the_command_says_what_to_install(bare: Path, command: str) -> None:
    done = run(bare, "qwenvl", *command.split())
    assert done.returncode == 2
    assert "pip install 'qwen-vl-serving[all]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "qwenvl-client 0." in run(bare, "qwenvl", "--version").stdout


def test_the_command_is_that_of_the_server_where_it_is_installed(
    bare: Path, server_wheel: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "both"
    shutil.copytree(bare.parent, copy, symlinks=True)
    install(server_wheel, copy / "bin" / "python")
    script = (copy / "bin" / "qwenvl").read_text()
    assert "from qwenvl.cli import main" in script
    # Without the libraries of the server the command says so; with them, its own tests run it.
    done = run(copy / "bin", "qwenvl", "chat", "x")
    assert done.returncode == 2
    assert "is not installed" in done.stderr
    [packages] = copy.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(f"{packages_of_this_environment()}\n")
    done = run(copy / "bin", "python", "-m", "qwenvl.cli", "check", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: qwenvl check")


def packages_of_this_environment() -> Path:
    spec = importlib.util.find_spec("grpc")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]
