"""Every command of the README does what the README says, against the product that `make serve` started."""

from __future__ import annotations

from dataclasses import dataclass
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys

import pytest

from inference_service.cli import build_parser
from tests.e2e.conftest import ROOT, Served


README = (ROOT / "README.md").read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block of commands, how it is tested and what it prints."""

    how: str
    language: str
    code: str
    prints: str | None


def blocks() -> list[Block]:
    pattern = re.compile(
        r"(?:<!-- (?P<how>.+?) -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```\n(?:```text\n(?P<prints>.*?)```)?",
        re.DOTALL,
    )
    return [
        Block(match["how"] or "", match["language"], match["code"], match["prints"])
        for match in pattern.finditer(README)
    ]


def test_every_block_says_how_it_is_tested() -> None:
    assert len(blocks()) == README.count("```bash\n") + README.count("```python\n")
    assert [block.code for block in blocks() if not re.match(r"run|parse", block.how)] == []


RUN = [block for block in blocks() if re.match(r"run$|run with:", block.how)]


@pytest.mark.parametrize("block", RUN, ids=lambda block: re.sub(r"\W+", "-", block.code)[:40])
def test_block_prints_what_the_readme_says(served: Served, block: Block) -> None:
    code = block.code
    if block.how.startswith("run with: "):
        code = code.rstrip() + " " + block.how.removeprefix("run with: ")
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


def test_gpu_commands_parse() -> None:
    [block] = [block for block in blocks() if block.how == "parse"]
    for line in block.code.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "qwenvl"
        build_parser().parse_args(arguments)  # ends the test with a word on what it does not know


def test_the_two_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {"make serve\n", "make test\n"} <= {block.code for block in blocks()}
    assert re.search(r"^serve:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text()
