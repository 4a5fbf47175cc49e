"""The comparison of the backends: what it hands to the comparison of servers, and one run of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from benchmarks import backends, peers


def test_both_backends_of_one_model_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[str, list[str]]] = []
    ended: list[str] = []

    @contextmanager
    def serving(backend: str, arguments: Sequence[str]) -> Iterator[list[str]]:
        served.append((backend, list(arguments)))
        yield ["--server", backend, "http://127.0.0.1:1", "1"]
        ended.append(backend)

    given: list[str] = []

    def measure(argv: Sequence[str]) -> int:
        given.extend(argv)
        return 0

    monkeypatch.setattr(backends, "serving", serving)
    monkeypatch.setattr(peers, "main", measure)
    assert backends.main(["--", "--rounds", "1"]) == 0
    assert backends.main(["org/model", "--", "--tokens", "8"]) == 0
    assert served == [(b, m) for m in ([], ["org/model"]) for b in ("native", "transformers")]
    assert sorted(ended) == sorted(backend for backend, _ in served)
    server = ["http://127.0.0.1:1", "1"]
    both = ["--server", "native", *server, "--server", "transformers", *server]
    assert given == [*both, "--rounds", "1", *both, "--tokens", "8"]


@pytest.mark.full
def test_the_demo_model(capsys: pytest.CaptureFixture[str]) -> None:
    load = ["--rounds", "1", "--requests", "2", "--concurrency", "2", "--tokens", "8"]
    assert backends.main(["--", *load, "--image-size", "64", "--other-cores", "1e9"]) == 0
    assert "| transformers | 2 |" in capsys.readouterr().out
