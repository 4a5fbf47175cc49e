"""The trainer stays out of what is installed."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
import tomllib


def test_the_wheel_has_no_trainer():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]

    assert any(fnmatch("inference_service.demo", pattern) for pattern in patterns)
    assert not any(fnmatch("demo_training", pattern) for pattern in patterns)
