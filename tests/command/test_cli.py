"""`qwenvl serve` as a command: its errors and its end. What it serves is tested end to end."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

import pytest


COMMAND = Path(sys.executable).with_name("qwenvl")


def qwenvl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "/no/such/model"], "neither a directory nor a hub id"),
        (["serve", "--max-num-seqs", "none"], "--max-num-seqs"),
        (["fly"], "invalid choice"),
        ([], "required"),
    ],
)
def test_a_wrong_command_ends_at_once_and_says_why(arguments: list[str], says: str) -> None:
    result = qwenvl(*arguments)
    assert result.returncode != 0
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_help_lists_the_fixed_flags() -> None:
    text = qwenvl("serve", "--help").stdout
    for flag in (
        "--grpc-address",
        "--http-address",
        "--served-model-name",
        "--dtype",
        "--device",
        "--max-model-len",
        "--max-num-seqs",
        "--gpu-memory-utilization",
        "--api-key-file",
        "--allowed-media-domains",
        "--allow-local-media-path",
    ):
        assert flag in text


def test_the_command_loads_no_torch() -> None:
    code = "import sys, inference_service.cli; assert not {'torch', 'transformers', 'rest_adapter'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
