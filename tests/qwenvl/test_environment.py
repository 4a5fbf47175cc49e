"""The environment: misspelt settings are noticed, and children import nothing from the working directory."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import pytest

from qwenvl.environment import check_variables
from qwenvl.safe_path import child_environment


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("QWENVL_MAX_NUM_SEQ", "QWENVL_MAX_NUM_SEQS"),
        ("QWENVL_API_KEYFILE", "QWENVL_API_KEY_FILE"),
        ("QWENVL_API_KEY_FLIE", "QWENVL_API_KEY_FILE"),
        ("QWENVL_ALLOWED_MEDIA_DOMAIN", "QWENVL_ALLOWED_MEDIA_DOMAINS"),
        ("QWENVL_MAX_BODY_MB", "QWENVL_MAX_BODY_MIB"),
        ("QWENVL_max_queue", "QWENVL_MAX_QUEUE"),
        ("QWEN_VL_DEVICE", "QWENVL_DEVICE"),
        ("qwenvl_device", "QWENVL_DEVICE"),
        ("QWENVL_PORT", "QWENVL_HTTP_ADDRESS"),
        ("QWENVL_GRPC_PORT", "QWENVL_GRPC_ADDRESS"),
    ],
)
def test_a_misspelt_setting_ends_the_start(variable: str, meant: str) -> None:
    with pytest.raises(SystemExit) as refused:
        check_variables({variable: "1"})
    assert str(refused.value) == f"{variable} is not a setting; did you mean {meant}?"


def test_an_unknown_variable_is_told() -> None:
    said = check_variables({"QWENVL_COLOUR_OF_THE_SKY": "blue", "PATH": "/bin"})
    assert said == ["QWENVL_COLOUR_OF_THE_SKY is not a setting and has no effect"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("QWENVL_MAX_NUM_SEQS", "3"),
        ("QWENVL_MAX_TOKENS_DEFAULT", "3"),  # a second name
        ("QWENVL_STRICT_FIELDS", "true"),  # of the adapter
        ("QWENVL_API_KEY", "x"),
        ("QWENVL_MAX_NUM_SEQ", ""),  # empty = unset
        # What Kubernetes sets for a Service called `qwenvl` or `qwenvl-grpc`.
        ("QWENVL_SERVICE_HOST", "10.0.0.1"),
        ("QWENVL_SERVICE_PORT", "8000"),
        ("QWENVL_SERVICE_PORT_HTTP", "8000"),
        ("QWENVL_PORT", "tcp://10.0.0.1:8000"),
        ("QWENVL_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("QWENVL_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("QWENVL_GRPC_PORT", "tcp://10.0.0.1:50051"),
        ("QWENVL_GRPC_PORT_50051_TCP_PROTO", "tcp"),
    ],
)
def test_known_variables_and_those_of_kubernetes_are_accepted(variable: str, value: str) -> None:
    assert check_variables({variable: value}) == []


@pytest.mark.parametrize("path", ["", ":", "{lib}:", ":{lib}", "relative:{lib}", ".", None])
def test_a_child_imports_nothing_from_the_working_directory(
    tmp_path: Path, path: str | None
) -> None:
    here, library = tmp_path / "here", tmp_path / "lib"
    for directory, text in ((here, "raise SystemExit('hostile')"), (library, "print('ours')")):
        (directory / "relative").mkdir(parents=True)
        for name in ("json.py", "ours.py", "sitecustomize.py", "relative/json.py"):
            code = "" if directory == library and name != "ours.py" else text
            (directory / name).write_text(code)
    (library / "json.py").unlink()
    environ = dict(os.environ)
    environ.pop("PYTHONPATH", None)
    environ["PYTHONINSPECT"] = "1"  # would print a traceback and wait for input
    if path is not None:
        environ["PYTHONPATH"] = path.format(lib=library)
    result = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import json, importlib.util as u\nu.find_spec('ours') and __import__('ours')",
        ],
        cwd=here,
        env=child_environment(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == ("ours\n" if path and "lib" in path else "")
