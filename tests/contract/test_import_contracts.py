"""The import contracts in pyproject.toml notice every kind of violation, and network modules are where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.examples import one_in


ROOT = Path(__file__).parents[2]
PACKAGES = ("inference_service", "rest_adapter", "demo_training", "protos/qwenvl")

LAYERS = "packages of the service import downwards only, and every one has a layer"
TORCH = "torch only in the engine, its models and kernels, and the vision modules of the families"
TORCH_MODULES = "only the engine process loads the modules that load torch"
SERVICES = "the gRPC services use only the interface of the backend"
FAMILIES = "the families do not import each other"
PILLOW = "Pillow only in decoding, which the front leaves to its workers, and in commands"
PILLOW_MODULES = "only decode workers load the modules that load Pillow"
LLGUIDANCE = "llguidance only in grammar"
LLGUIDANCE_MODULES = "only the engine and the trial process load the modules that load llguidance"
GRPC = "protobuf and gRPC only in grpc_api and commands"
HTTP = "HTTP clients only in media (hosts named by callers), hub (hosts named by operators) and the probe of serve"
PYDANTIC = "pydantic only in the adapter, in settings and in qwenvl.flags"
PROMETHEUS = (
    "prometheus_client only where metrics are declared, read and served, and not in the client"
)
TRACES = "OpenTelemetry only in the module that sends traces"
APART = "service, adapter and demo trainer are independent of each other"
QWENVL = "the package qwenvl imports neither service nor adapter"
ADAPTER = "the adapter imports neither torch, transformers, Pillow nor HTTP clients"
DIALECTS = "only the application imports the REST dialects"
DIALECTS_APART = "the REST dialects do not import each other"
PICKLE = "transformers only in the process of its backend, and no pickle anywhere"
CIRCLES = "no circles: neither between packages nor between the modules of one"

SERVICE = "inference_service"
VIOLATIONS = [
    (f"{SERVICE}/backend/base.py", f"import {SERVICE}.grpc_api.server", LAYERS),
    (f"{SERVICE}/engine_client/client.py", f"import {SERVICE}.hub.resolve", LAYERS),
    (f"{SERVICE}/new_package/__init__.py", "", LAYERS),
    (f"{SERVICE}/new_module.py", "import torch", TORCH),
    (f"{SERVICE}/__main__.py", "import torch", TORCH),
    (f"{SERVICE}/domain.py", "import torch", TORCH),
    (f"{SERVICE}/families/tables.py", "import torch", TORCH),
    (f"{SERVICE}/families/glm_4v/tables.py", "import torch", TORCH),
    (f"{SERVICE}/families/qwen_common/config.py", "from torch import nn", TORCH),
    (f"{SERVICE}/backend/run.py", f"import {SERVICE}.models.batch", TORCH_MODULES),
    (f"{SERVICE}/commands/check.py", f"import {SERVICE}.engine.memory", TORCH_MODULES),
    (
        f"{SERVICE}/families/glm_4v/spec.py",
        f"from {SERVICE}.families.glm_4v import vision",
        TORCH_MODULES,
    ),
    (
        f"{SERVICE}/grpc_api/generation.py",
        f"from {SERVICE}.backend import admission",
        SERVICES,
    ),
    (f"{SERVICE}/grpc_api/server.py", f"import {SERVICE}.backend.local", SERVICES),
    (f"{SERVICE}/grpc_api/requests.py", f"import {SERVICE}.media.decode", SERVICES),
    (
        f"{SERVICE}/families/qwen3_vl/spec.py",
        f"import {SERVICE}.families.qwen_vl.spec",
        FAMILIES,
    ),
    (f"{SERVICE}/families/qwen_common/text.py", f"import {SERVICE}.families.glm_4v", FAMILIES),
    (f"{SERVICE}/families/tables.py", f"import {SERVICE}.families.qwen_vl.spec", FAMILIES),
    (f"{SERVICE}/domain.py", "import PIL", PILLOW),
    (f"{SERVICE}/media/checks.py", "import PIL", PILLOW),
    (f"{SERVICE}/media/prepare.py", f"import {SERVICE}.media.decode", PILLOW_MODULES),
    (f"{SERVICE}/media/pool.py", f"from {SERVICE}.media import worker", PILLOW_MODULES),
    (f"{SERVICE}/engine/runner.py", "from PIL import Image", PILLOW),
    (f"{SERVICE}/backend/local.py", "import llguidance", LLGUIDANCE),
    (f"{SERVICE}/grammar/checker.py", "from llguidance import LLMatcher", LLGUIDANCE),
    (f"{SERVICE}/grammar/checker.py", f"import {SERVICE}.grammar.matcher", LLGUIDANCE_MODULES),
    (f"{SERVICE}/backend/local.py", f"import {SERVICE}.grammar.vocabulary", LLGUIDANCE_MODULES),
    (f"{SERVICE}/domain.py", "import grpc", GRPC),
    (f"{SERVICE}/__main__.py", "import google.protobuf", GRPC),
    (f"{SERVICE}/engine_client/child.py", "from qwenvl.client import Client", GRPC),
    (f"{SERVICE}/engine_client/child.py", "from qwenvl import Client", GRPC),
    (f"{SERVICE}/backend/base.py", "from qwenvl.inference.v1 import usage_pb2", GRPC),
    (f"{SERVICE}/settings.py", "import qwenvl.specs", GRPC),
    (f"{SERVICE}/domain.py", "import httpx", HTTP),
    (f"{SERVICE}/cli.py", "import requests", HTTP),
    (f"{SERVICE}/commands/chat.py", "import http.client", HTTP),
    (f"{SERVICE}/domain.py", "import pydantic", PYDANTIC),
    ("protos/qwenvl/limits.py", "import pydantic", PYDANTIC),
    (f"{SERVICE}/media/pool.py", "import prometheus_client", PROMETHEUS),
    ("rest_adapter/stream.py", "from prometheus_client import Counter", PROMETHEUS),
    ("protos/qwenvl/client.py", "import prometheus_client", PROMETHEUS),
    (f"{SERVICE}/backend/run.py", "from opentelemetry import trace", TRACES),
    ("rest_adapter/traces.py", "import opentelemetry.trace", TRACES),
    ("protos/qwenvl/observability/tracing.py", "from opentelemetry import trace", TRACES),
    ("rest_adapter/state.py", f"import {SERVICE}.domain", APART),
    ("demo_training/network.py", f"import {SERVICE}.domain", APART),
    ("protos/qwenvl/limits.py", "import rest_adapter", QWENVL),
    ("protos/qwenvl/rpc.py", "from grpc_status import rpc_status", QWENVL),
    ("protos/qwenvl/images.py", "import numpy", QWENVL),
    ("rest_adapter/state.py", "import PIL", ADAPTER),
    ("rest_adapter/state.py", "import rest_adapter.openai.fields", DIALECTS),
    ("rest_adapter/stream.py", "import rest_adapter.anthropic.errors", DIALECTS),
    ("rest_adapter/anthropic/errors.py", "import rest_adapter.openai.errors", DIALECTS_APART),
    (f"{SERVICE}/text/guard.py", "import transformers", PICKLE),
    (f"{SERVICE}/errors.py", "import pickle", PICKLE),
    (f"{SERVICE}/media/url.py", f"import {SERVICE}.media.prepare", CIRCLES),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages' sources beside their contracts."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            target = root / source.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return root


def broken_contracts(root: Path) -> list[str]:
    """The names of the broken contracts of the packages in a folder."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "protos")]),
        "COLUMNS": "250",
    }
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [command, "--no-logo", "--cache-dir", root / "cache"],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    verdicts = re.findall(r"^(.+?) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE)
    assert {name for name, _ in verdicts} == contract_names(), done.stdout + done.stderr
    return [name for name, verdict in verdicts if verdict == "BROKEN"]


def contract_names() -> set[str]:
    import tomllib

    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["name"] for contract in options["tool"]["importlinter"]["contracts"]}


def test_the_tree_keeps_every_contract(copy: Path) -> None:
    assert broken_contracts(copy) == []


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    one_in(3, VIOLATIONS),
    ids=[f"{file}: {line}" for file, line, _ in VIOLATIONS],
)
def test_a_violation_breaks_its_contract(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        assert contract in broken_contracts(copy)
    finally:
        if before is not None:
            path.write_text(before, encoding="utf-8")
        else:
            path.unlink()
            if path.name == "__init__.py":
                path.parent.rmdir()


def test_every_contract_has_a_violation_here() -> None:
    assert {contract for _, _, contract in VIOLATIONS} == contract_names()


# Import contracts see libraries as wholes: they cannot tell urllib.request from urllib.parse.
NETWORK = ("ftplib", "http", "imaplib", "poplib", "smtplib", "socket", "socketserver", "urllib")
HARMLESS = ("http.HTTPStatus", "urllib.parse")
PERMITTED = {
    "inference_service/media/fetch.py": {"socket"},  # media of callers, guarded
    "inference_service/commands/pair.py": {"http.client"},  # probes its own services
    "inference_service/commands/ports.py": {"socket"},  # only names its errors
    "protos/qwenvl/addresses.py": {"socket"},  # listens
    "protos/qwenvl/launcher.py": {"socket"},  # between qwenvl serve and the programs that it starts
    "protos/qwenvl/observability/metrics_server.py": {"socket", "socketserver"},  # listens
    "rest_adapter/half_closed.py": {
        "socket.SOL_SOCKET",
        "socket.SO_ERROR",
    },  # only asks a connection for its state
    "rest_adapter/http_protocol.py": {
        "socket.AF_INET",
        "socket.AF_INET6",
        "socket.IPPROTO_TCP",
        "socket.TCP_NOTSENT_LOWAT",
    },  # only sets an option of a connection
    "inference_service/media/failures.py": {"socket"},
    "inference_service/media/resolve.py": {"socket"},
    "inference_service/media/worker_process.py": {"socket"},  # the socket to a decode worker
    "inference_service/media/worker.py": {"socket"},
    "inference_service/grammar/checker.py": {"socket"},  # the socket to the trial process
    "inference_service/grammar/trial.py": {"socket"},
    "inference_service/grpc_api/connections.py": {"socket"},  # closes idle ones of its own port
    "inference_service/engine_client/child.py": {"socket"},  # the socket to the engine
    "inference_service/engine/process.py": {"socket"},
}


def network_modules(source: str) -> Iterator[str]:
    """Modules of the standard library that open connections, among the imports of a source file."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] in NETWORK and not name.startswith(HARMLESS):
                yield name


def test_network_modules_are_imported_only_where_permitted() -> None:
    found = {
        str(path.relative_to(ROOT)): modules
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if (modules := set(network_modules(path.read_text(encoding="utf-8"))))
    }
    assert found == PERMITTED


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import urllib.request", ["urllib.request"]),
        ("from urllib import request", ["urllib.request"]),
        ("def f():\n    from http.client import HTTPConnection", ["http.client.HTTPConnection"]),
        ("import socket as s", ["socket"]),
        ("import urllib", ["urllib"]),
        ("from urllib.parse import urlsplit\nfrom http import HTTPStatus", []),
    ],
)
def test_network_imports_are_found_in_any_spelling(source: str, found: list[str]) -> None:
    assert list(network_modules(source)) == found
