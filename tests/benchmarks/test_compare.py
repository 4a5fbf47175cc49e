"""The comparison of two servers: the arithmetic, and one run with a client that only writes figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare import Ratio, main, ratios


KEY = (4, "gRPC")


def figures(*values: float) -> list[dict[tuple[int, str], float]]:
    return [{KEY: value} for value in values]


def test_the_median_is_of_the_ratios_of_each_round() -> None:
    pairs = ((100.0, 90.0), (50.0, 55.0), (10.0, 10.0))
    rounds = [(figures(old), figures(new)) for old, new in pairs]
    assert ratios(rounds) == [Ratio("new / old", *KEY, 1.0, 0.9, 1.1)]


def test_several_servers_of_a_version_count_by_their_mean_and_give_a_control() -> None:
    rounds = [(figures(100.0, 80.0), figures(90.0, 108.0))]
    assert ratios(rounds) == [
        Ratio("new / old", *KEY, 1.1, 1.1, 1.1),
        Ratio("old / old", *KEY, 0.8, 0.8, 0.8),
    ]


@pytest.mark.parametrize("column", ["api", "door"])
def test_every_round_measures_each_server_once(
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
    assert "| new / old | 1 | REST | 1.200 | 1.200 | 1.200 |" in capsys.readouterr().out
    calls = log.read_text().splitlines()
    for turns in (calls[:2], calls[2:]):
        assert sorted(turns) == ["new --tokens=8", "old --tokens=8"]
