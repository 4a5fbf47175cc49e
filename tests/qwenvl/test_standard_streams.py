"""A program that is started without standard streams, as service managers and `2>&-` do."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import pytest


_PROGRAM = """
import os, sys
from qwenvl.standard_streams import complete_standard_streams
complete_standard_streams()
print("out"); print("error", file=sys.stderr); sys.stdin.read()
opened = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
assert opened > 2, opened
os.write(opened, b"untouched")
child = "import os; os.write(1, b'x'); os.write(2, b'x'); os.fstat(0)"
import subprocess; subprocess.run([sys.executable, "-c", child], check=True)
"""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_missing_streams_are_opened_and_inherited(closed: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" {closed}', sys.executable, _PROGRAM, str(file)]
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0
    assert file.read_bytes() == b"untouched"


@pytest.mark.parametrize(
    "command",
    [["qwenvl", "check"], ["inference-service", "--version"], ["rest-adapter", "--check-settings"]],
)
def test_the_programs_need_no_streams(command: list[str], tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name(command[0]))
    words = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', program, *command[1:]]
    path = os.pathsep.join(filter(None, sys.path))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QWENVL_")}
    result = subprocess.run(
        words, env=kept | {"PYTHONPATH": path}, cwd=tmp_path, timeout=60, check=False
    )
    assert result.returncode == 0
