"""The comparison of two servers: the arithmetic, and one run with a client that only writes figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare import Ratio, main, ratios


def test_the_median_is_of_the_ratios_of_each_round() -> None:
    key = (4, "gRPC")
    rounds = [({key: 100.0}, {key: 90.0}), ({key: 50.0}, {key: 55.0}), ({key: 10.0}, {key: 10.0})]
    assert ratios(rounds) == [Ratio(4, "gRPC", 1.0, 0.9, 1.1)]


@pytest.mark.parametrize("column", ["api", "door"])
def test_servers_take_turns_and_both_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    log = tmp_path / "calls"
    client = tmp_path / "serve.py"
    client.write_text(
        "import json, pathlib, sys\n"
        "url, path = sys.argv[2], sys.argv[sys.argv.index('--json') + 1]\n"
        f"with open({str(log)!r}, 'a') as file: file.write(url + ' ' + sys.argv[-1] + '\\n')\n"
        f"row = {{'concurrency': 1, {column!r}: 'REST', 'tokens_per_s': 10.0 if url == 'old' else 12.0}}\n"
        "pathlib.Path(path).write_text(json.dumps({'rows': [row]}))\n"
    )
    addresses = ["--old", "old", "a", "--new", "new", "b"]
    assert main([*addresses, "--rounds", "2", "--client", str(client), "--", "--tokens=8"]) == 0
    assert "| 1 | REST | 1.200 | 1.200 | 1.200 |" in capsys.readouterr().out
    assert log.read_text().split() == [
        word for url in ("old", "new", "new", "old") for word in (url, "--tokens=8")
    ]
