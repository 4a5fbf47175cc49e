"""Every fenced command of the documentation does what the text says, against the product that `make serve` started.

The line before a block says how it is tested: `run`, `run with: ARGUMENTS`, `parse`, or `not run: REASON`.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from inference_service.cli import build_parser
from inference_service.settings import ServiceSettings
from qwenvl.flags import FlagSettings
from rest_adapter.settings import AdapterSettings
from tests.e2e.conftest import ROOT, Served


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "k8s/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(
    r"(?:<!-- (?P<how>[^\n]+?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```\n"
    r"(?:```text\n(?P<prints>.*?)```)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of commands, how it is tested and what it prints."""

    document: str
    how: str
    language: str
    code: str
    prints: str | None

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.document} {self.code}")[:60]


def blocks() -> Iterator[Block]:
    for path in DOCUMENTS:
        for match in BLOCK.finditer(path.read_text(encoding="utf-8")):
            yield Block(
                document=str(path.relative_to(ROOT)),
                how=match["how"] or "",
                language=match["language"],
                code=match["code"],
                prints=match["prints"],
            )


RUN = [block for block in blocks() if re.fullmatch(r"run|run with: .+", block.how)]
PARSED = [block for block in blocks() if block.how == "parse"]


def test_every_block_says_how_it_is_tested() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    fences = sum(text.count("```bash\n") + text.count("```python\n") for text in texts)
    assert len(list(blocks())) == fences
    known = re.compile(r"run|run: .+|run with: .+|parse|not run: .+")
    assert [block.code for block in blocks() if not known.fullmatch(block.how)] == []


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_block_prints_what_the_document_says(served: Served, block: Block) -> None:
    code = block.code
    if block.how.startswith("run with: "):
        code = code.rstrip() + " " + block.how.removeprefix("run with: ")
        if "benchmarks/serve.py" in code:
            code += f" --rest-url {served.http} --grpc-target {served.grpc_target}"
    code = code.replace("127.0.0.1:50051", served.grpc_target)
    code = code.replace("127.0.0.1:8000", served.http.removeprefix("http://"))
    command = (
        [sys.executable, "-c", code]
        if block.language == "python"
        else ["bash", "-euo", "pipefail", "-c", code]
    )
    binaries = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    if block.prints is not None:
        assert result.stdout == block.prints


def _parser_of(settings: type[FlagSettings]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    settings.add_flags(parser)
    return parser


@pytest.mark.parametrize("block", PARSED, ids=lambda block: block.name)
def test_arguments_are_valid(block: Block) -> None:
    parsers = {
        "qwenvl": build_parser(),
        "inference-service": _parser_of(ServiceSettings),
        "rest-adapter": _parser_of(AdapterSettings),
    }
    for line in block.code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        # Ends the test with a message if an argument is unknown.
        parsers[program.removeprefix(".venv/bin/")].parse_args(arguments)


def test_the_readmes_examples_need_only_what_make_serve_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    makefile = (ROOT / "Makefile").read_text()
    rule = makefile.partition("$(STAMP)all: pyproject.toml")[2].partition("\n\n")[0]
    extras = re.findall(r"-e '\.\[([\w,]+)\]'", rule)[0].split(",")
    assert extras == ["all", "examples"]
    needed = [*project["dependencies"]]
    for extra in ("adapter", "inference", "examples"):
        needed += project["optional-dependencies"][extra]
    installed = {re.split(r"\W", need.replace("-", "_"))[0] for need in needed} | {"qwenvl"}
    for block in blocks():
        if block.document == "README.md" and block.language == "python":
            for node in ast.walk(ast.parse(block.code)):
                names = [alias.name for alias in getattr(node, "names", [])]
                for name in [getattr(node, "module", None)] if hasattr(node, "module") else names:
                    module = str(name).partition(".")[0]
                    assert module in installed | sys.stdlib_module_names, module


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    readme = {block.code for block in blocks() if block.document == "README.md"}
    assert {"make serve\n", "make test\n"} <= readme
    assert re.search(r"^serve:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()
