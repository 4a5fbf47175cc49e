"""Puts the plugins of protoc for TypeScript and Go beside the interpreter, where npm and go are at hand.

Best effort: without them, the tests of these languages are skipped and say why. The generators of Java and C# are part
of protoc itself, which pip installs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import shutil
import subprocess
import sys


TYPESCRIPT = "@bufbuild/protoc-gen-es@2.17.0"
GO = "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12"
PREFIX = Path(sys.prefix) / "generators"


def plugin(name: str) -> str | None:
    """The path of a plugin: of this environment, or on PATH."""
    own = [PREFIX / "node_modules" / ".bin" / name, PREFIX / "bin" / name]
    return next((str(path) for path in own if path.exists()), None) or shutil.which(name)


def install(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Runs an installer; its failure is told and does not end the set-up."""
    try:
        subprocess.run(
            command,
            check=True,
            timeout=300,
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
    except (OSError, subprocess.SubprocessError) as error:
        details = getattr(error, "stderr", None) or error
        sys.stderr.write(f"{' '.join(command)} failed; its tests are skipped: {details}\n")


def main() -> None:
    """Installs what is missing."""
    npm, go = shutil.which("npm"), shutil.which("go")
    if npm and not plugin("protoc-gen-es"):
        options = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        install([npm, "install", *options, "--prefix", str(PREFIX), TYPESCRIPT], {})
    if go and not plugin("protoc-gen-go"):
        install([go, "install", GO], {"GOBIN": str(PREFIX / "bin")})


if __name__ == "__main__":
    main()
