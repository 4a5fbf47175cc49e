"""The contract files: linted, compatible with the last release, and the checked-in stubs are what protoc makes."""

from __future__ import annotations

import hashlib
from pathlib import Path
import re
import subprocess
import sys

import pytest


ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUF, *arguments], cwd=PROTOS, capture_output=True, text=True, timeout=120, check=False
    )


def frozen_contract_problem(changelog: str, baseline: bytes) -> str | None:
    """What is wrong with a baseline: the newest version that changed the contract names its digest."""
    released = [
        section
        for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
        if section[:2] != "[U"
    ]
    named = re.findall(r"Contract: `sha256:([0-9a-f]{64})`", "\n".join(released))
    if not named:
        return "no version names the contract's digest"
    if named[0] != hashlib.sha256(baseline).hexdigest():
        return "protos/baseline.binpb changed without a new version heading that names its digest"
    if any(section.count("Contract: ") > 1 for section in released):
        return "a version has one contract"
    return None


def test_buf_lint_has_no_findings() -> None:
    result = buf("lint")
    assert (result.returncode, result.stdout) == (0, "")


def test_contract_is_compatible_with_the_last_release() -> None:
    result = buf("breaking", "--against", "baseline.binpb")
    assert result.returncode == 0, result.stdout


def test_a_changed_type_would_be_found(tmp_path: Path) -> None:
    copy = tmp_path / "protos"
    for source in [PROTOS / "buf.yaml", *PROTOS.glob("qwenvl/inference/v1/*.proto")]:
        target = copy / source.relative_to(PROTOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace("int64 created = 3", "string created = 3"))
    result = subprocess.run(
        [BUF, "breaking", "--against", PROTOS / "baseline.binpb"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 100
    assert "created" in result.stdout


def test_baseline_is_frozen_at_the_release() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    baseline = (PROTOS / "baseline.binpb").read_bytes()
    assert frozen_contract_problem(changelog, baseline) is None
    assert frozen_contract_problem(changelog, baseline + b"x") is not None
    assert frozen_contract_problem("## [9.9.9] - 2030-01-01\n" + changelog, baseline) is None
    assert frozen_contract_problem("no heading", baseline) is not None


def test_newest_version_heading_is_the_distribution_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    heading = re.search(r"^## \[(\d.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version is not None
    assert heading is not None
    assert heading[1] == version[1]


def test_checked_in_stubs_are_what_protoc_makes(tmp_path: Path) -> None:
    sources = sorted(PROTOS.glob("qwenvl/inference/v1/*.proto"))
    names = [str(source.relative_to(PROTOS)) for source in sources]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    services = [name for name in names if name.endswith("_service.proto")]
    for command in (
        [*protoc, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *names],
        [*protoc, f"--grpc_python_out={tmp_path}", *services],
    ):
        subprocess.run(command, check=True, timeout=120)
    made = {path.name: path.read_text() for path in tmp_path.rglob("*.py*")}
    kept = {
        path.name: path.read_text()
        for path in (PROTOS / "qwenvl/inference/v1").glob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []


@pytest.mark.parametrize(
    "stub", sorted((PROTOS / "qwenvl/inference/v1").glob("*_pb2*.py")), ids=lambda p: p.stem
)
def test_every_stub_imports_in_a_clean_process(stub: Path) -> None:
    module = f"qwenvl.inference.v1.{stub.stem}"
    code = f"import sys, {module}; assert not {{'torch', 'pydantic', 'fastapi'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
