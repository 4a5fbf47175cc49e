"""No variant of a GPU kernel is compiled while an engine serves: all are launched when it starts."""

from __future__ import annotations

from importlib.util import find_spec
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from tests.kernels.gpu.install_triton import FOLDER


PROGRAM = Path(__file__).with_name("count_variants.py")


@pytest.mark.skipif(
    not (find_spec("triton") or (FOLDER / "triton").is_dir()), reason=f"no triton in {FOLDER}"
)
@pytest.mark.parametrize(
    "options", [[], pytest.param(["--all-properties"], marks=pytest.mark.full)], ids=str
)
def test_variants_of_a_random_schedule(options: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["requests"] > 20
    kernels = {variant.partition(":")[0] for variant in found["at_start"]}
    assert {
        "decode_kernel",
        "combine_kernel",
        "prefill_kernel",
        "rotate_and_write_kernel",
    } <= kernels
    # What the kernels exclude from specialisation does change from step to step.
    assert bool(found["new"]) == bool(options), found["new"]
