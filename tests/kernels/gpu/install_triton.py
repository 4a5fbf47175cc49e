"""Puts triton into a folder of its own beside the interpreter, where torch did not bring it.

Builds of torch for a CPU lack it, and those for a GPU pin a version of their own: the folder is on the path of the
tests of GPU kernels only. Best effort: without triton these tests are skipped and say why.
"""

from __future__ import annotations

from importlib.util import find_spec
import os
from pathlib import Path
import subprocess
import sys


TRITON = "triton==3.9.0"
FOLDER = Path(sys.prefix) / "triton"


def main() -> None:
    """Installs it unless it is there."""
    if find_spec("triton") or (FOLDER / "triton").is_dir():
        return
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    try:
        subprocess.run(
            [*pip, "--no-deps", "--target", str(FOLDER), TRITON],
            check=True,
            timeout=900,
            capture_output=True,
            text=True,
            env=os.environ,
        )
    except (OSError, subprocess.SubprocessError) as error:
        details = getattr(error, "stderr", None) or error
        sys.stderr.write(f"{TRITON} cannot be installed; its tests are skipped: {details}\n")


if __name__ == "__main__":
    main()
