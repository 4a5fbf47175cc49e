"""The measurement of the start, with a command that only says that it is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import start


def tree_of(folder: Path, code: str) -> Path:
    package = folder / "inference_service"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(f"import signal, sys\n{code}\n")
    return folder


SAYS = "print('REST listens', *sys.argv[1:], 'ready: it', sep='\\n', file=sys.stderr, flush=True); signal.pause()"


def test_every_round_starts_each_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start, "HERE", tree_of(tmp_path / "new", SAYS))
    monkeypatch.setattr(start, "time_import", lambda: 100.0)
    old = tree_of(tmp_path / "old", SAYS)
    start.main(["--rounds", "2", "--against", str(old)])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in lines[-2:]] == ["| new | ", "| old | "]
    assert "`import torch`: 100.00 s" in lines


def test_a_command_that_ends_is_no_measurement(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "sys.exit('the port is in use')")
    with pytest.raises(RuntimeError, match="the port is in use"):
        start.time_start(tree, ["--device", "cpu"])
