"""Runs the tests as on another machine: no system fonts, an empty home, older processors.

    python tests/environments.py [ENVIRONMENT ...] [-- PYTEST_ARGUMENT ...]

`bare` has no system fonts and an empty home. So have `default`, where torch uses no vector instructions, and `avx2`,
where oneDNN uses AVX2 at most. Without arguments for pytest, `bare` runs what `make test` runs, and the others leave
out what neither computes with torch nor draws.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile


ROOT = Path(__file__).parents[1]
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "bare": {},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
}
FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts")
NO_FONTS = ROOT / "tests" / "support" / "no_fonts.conf"
# Settings that point at files or services of this user.
PERSONAL = ("XDG_", "HF_", "HUGGINGFACE_", "MODELSCOPE_", "QWENVL_", "FONTCONFIG_", "OPENAI_")
SELECTION = ("-m", "not full and not gpu and not clients")
# Tests that neither compute with torch nor draw: the processor makes no difference to them.
WITHOUT_NUMBERS = ("benchmarks", "docs", "hub", "k8s", "qwenvl", "rest_adapter", "text")


def hidden_fonts() -> list[str]:
    """The command in front of another one that hides the font folders; empty where that is not possible."""
    folders = [folder for folder in FONT_FOLDERS if Path(folder).is_dir()]
    if not folders:
        return []
    mounts = "".join(f"mount -t tmpfs none {folder} && " for folder in folders)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounts + 'exec "$@"', "sh"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False).returncode
    ):
        print(f"NOT HIDDEN: {', '.join(folders)} (no user namespaces); fontconfig alone finds none")
        return []
    return command


def run(name: str, pytest_arguments: Sequence[str]) -> int:
    """Runs pytest in one environment; returns its exit status."""
    with tempfile.TemporaryDirectory() as home:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PERSONAL)}
        environment |= {"HOME": home, "FONTCONFIG_FILE": str(NO_FONTS)} | ENVIRONMENTS[name]
        command = [*hidden_fonts(), sys.executable, "-m", "pytest", *pytest_arguments]
        changes = " ".join(f"{k}={v}" for k, v in ENVIRONMENTS[name].items())
        print(f"== {name} {changes}: pytest {' '.join(pytest_arguments)}", flush=True)
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def default_arguments(name: str) -> list[str]:
    """What pytest runs in an environment unless told otherwise."""
    ignored = () if name == "bare" else WITHOUT_NUMBERS
    return [*SELECTION, *(f"--ignore=tests/{folder}" for folder in ignored)]


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status: 0 if the tests passed in all environments."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, chosen = arguments[:end] or [*ENVIRONMENTS], arguments[end + 1 :]
    if unknown := set(names) - ENVIRONMENTS.keys():
        print(f"unknown environment {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
        return 2
    statuses = {name: run(name, chosen or default_arguments(name)) for name in names}
    for name, status in statuses.items():
        print(f"{name}: {'passed' if status == 0 else f'failed, pytest ended with {status}'}")
    return max(statuses.values())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
