"""`make` for newcomers: help, ports, and a plain word about an old Python."""

from __future__ import annotations

import os
from pathlib import Path
import re
import subprocess
import sys

import pytest


ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Nothing of the `make` that runs the tests.
    ours = ("PORT", "MODEL", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("help",)])
def test_help_names_every_target(arguments: tuple[str, ...]) -> None:
    result = make(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    targets = set(re.findall(r"^make ([\w-]+)", result.stdout, re.MULTILINE))
    assert targets == {
        "serve",
        "test",
        "test-full",
        "test-clients",
        "lint",
        "docs",
        "sbom",
        "stubs",
        "clean",
    }
    assert "PORT=" in result.stdout


def test_ports_and_models_are_flags_of_serve() -> None:
    arguments = ("MODEL=org/model", "PORT=8010", "GRPC_PORT=50061", "ARGS=--device cpu")
    command = make("-n", "serve", *arguments).stdout.splitlines()[-1]
    flags = "org/model --port 8010 --grpc-address 127.0.0.1:50061 --device cpu"
    assert command.split()[-len(flags.split()) :] == flags.split()
    assert make("-n", "serve").stdout.splitlines()[-1].split()[-2:] == [".venv/bin/qwenvl", "serve"]


@pytest.mark.parametrize("goal", ["serve", "test"])
def test_an_old_python_is_told(tmp_path: Path, goal: str) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    result = make(goal, f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode == 2
    first = result.stderr.splitlines()[0]
    assert first == (
        f"Python 3.11 or newer is needed; {old} is Python 3.9.2."
        f" Name another one: make PYTHON=python3.12 {goal}"
    )
    assert not (tmp_path / "venv").exists()


def test_half_an_environment_is_removed(tmp_path: Path) -> None:
    """Debian's Python without python3-venv begins one and fails."""
    halfway = tmp_path / "python3"
    halfway.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] || exec {sys.executable} "$@"\n'
        'mkdir -p "$3/bin" && touch "$3/bin/python" && exit 1\n'
    )
    halfway.chmod(0o755)
    result = make("setup", f"PYTHON={halfway}", f"VENV={tmp_path / 'venv'}")
    assert result.returncode == 2
    assert "apt install python3-venv" in result.stderr
    assert not (tmp_path / "venv").exists()
