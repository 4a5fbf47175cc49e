"""What the GPU kernels take on a Hopper card, as compiled without one."""

from __future__ import annotations

from importlib.util import find_spec
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import pytest

from tests.kernels.gpu.install_triton import FOLDER


PROGRAM = Path(__file__).with_name("compile_kernels.py")
PRODUCTS = {"decode_kernel", "prefill_kernel", "skinny_linear_kernel"}
STREAMS = {
    *("rms_norm_kernel", "silu_and_mul_kernel", "rotate_and_write_kernel"),
    *("block_maximum_kernel", "add_parts_kernel", "lowest_kept_kernel"),
}
"""What reads much loads several values at once."""
THREADS = 128
"""Of a program; one with as many values loads one for each."""
SHARED_BYTES = 56 * 1024
"""Four programs fit into the 227 KiB of a multiprocessor."""


def values_of(row: dict[str, Any]) -> int:
    """Values of a program."""
    constants = row["constants"]
    values: int = constants["BLOCK"] * constants.get("ROWS", 1)
    return values


@pytest.mark.full
@pytest.mark.skipif(
    not (find_spec("triton") or (FOLDER / "triton").is_dir()), reason=f"no triton in {FOLDER}"
)
def test_no_kernel_spills_and_attention_has_the_instructions_of_the_card(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row for row in rows if row["spilled"]] == []
    assert [row for row in rows if row["shared"] > SHARED_BYTES] == []
    products = [row for row in rows if row["kernel"] in PRODUCTS]
    assert len(products) == 4 * 8 + 4
    assert [row for row in products if not (row["matrix"] and row["asynchronous"])] == []
    streams = [row for row in rows if row["kernel"] in STREAMS and values_of(row) > THREADS]
    assert {row["kernel"] for row in streams} == STREAMS
    assert [row for row in streams if not row["vectors"]] == []
