"""The comparison with other servers: the arithmetic, and two servers that only count tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import threading
from typing import Any

import pytest

from benchmarks.peers import Ratio, Run, body, machine_seconds, main, parse, process_seconds, ratios


def run(server: str, number: int, rate: float, other: float = 0.0) -> Run:
    return Run(number, server, 4, rate, 1.0, 1.0, other)


def test_a_pair_with_a_disturbed_run_is_thrown_away() -> None:
    runs = [
        *(run("ours", 0, 30.0), run("theirs", 0, 10.0)),
        *(run("theirs", 1, 1.0, 0.16), run("ours", 1, 30.0)),
        *(run("ours", 2, 30.0, 0.2), run("theirs", 2, 10.0)),
        *(run("ours", 3, 20.0, 0.15), run("theirs", 3, 10.0)),
    ]
    assert ratios(runs, "ours", 0.15) == [Ratio("theirs", 4, 2, 2, 2.5, 2.0, 3.0)]
    assert ratios(runs, "ours", -1.0) == [Ratio("theirs", 4, 0, 4, None, None, None)]


def test_no_two_requests_are_alike() -> None:
    server = parse(
        ["--server", "a", "http://127.0.0.1:1", "1", "--server", "b", "http://[::1]:2", "2"]
    ).server[0]
    bodies = {body(server, seed, 8, 32) for seed in range(3)}
    assert len(bodies) == 3
    assert json.loads(bodies.pop())["min_tokens"] == 8


@pytest.mark.parametrize(
    "servers",
    [
        [("a", "http://127.0.0.1:1", "1")],
        [("a", "http://127.0.0.1:1", "1"), ("a", "http://127.0.0.1:2", "1")],
        [("a", "http://127.0.0.1:1", "1"), ("b", "http://192.0.2.1:2", "1")],
        [("a", "http://127.0.0.1:1", "1"), ("b", "http://127.0.0.1:2", "x")],
    ],
)
def test_wrong_servers(servers: list[tuple[str, str, str]]) -> None:
    with pytest.raises(SystemExit):
        parse([word for server in servers for word in ("--server", *server)])


def test_the_time_of_a_process_is_with_its_descendants(tmp_path: Path) -> None:
    second = os.sysconf("SC_CLK_TCK")
    for pid, ticks, children in ((1, 2, "2 3"), (2, 3, "4"), (4, 5, ""), (9, 100, "")):
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        fields = ["S", *["0"] * 10, str(ticks * second), str(second), "0"]
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}")
        (task / "children").write_text(children)
    assert process_seconds(1, tmp_path) == 2 + 3 + 5 + 3  # process 3 has ended
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  " + " ".join(str(n * second) for n in (1, 2, 3, 50, 60, 4, 5, 6, 7)) + "\n"
    )
    assert machine_seconds(stat) == 1 + 2 + 3 + 4 + 5 + 6


@contextmanager
def serving(*, streams: bool, tokens: int = 4) -> Iterator[str]:
    """A server whose answers have so many tokens."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if streams:
                self.answer(b'{"data": [{"id": "m"}]}')
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            usage = {"completion_tokens": tokens}
            if not streams:
                self.answer(json.dumps({"choices": [], "usage": usage}).encode())
                return
            piece: dict[str, Any] = {"choices": [{"delta": {"content": "x"}}]}
            events = [piece, {"choices": [], "usage": usage}]
            text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            self.answer((text + "data: [DONE]\n\n").encode(), "text/event-stream")

        def answer(self, data: bytes, kind: str = "application/json") -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def arguments(ours: str, theirs: str, *more: str) -> list[str]:
    pid = str(os.getpid())
    servers = ["--server", "ours", ours, pid, "--server", "theirs", theirs, pid]
    load = ["--requests", "3", "--rounds", "2", "--tokens", "4", "--image-size", "32"]
    return [*servers, *load, "--concurrency", "1", "2", *more]


def test_all_servers_are_measured_in_every_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    with serving(streams=True) as ours, serving(streams=False) as theirs:
        more = ["--other-cores", "1e9", "--json", str(path)]
        assert main(arguments(ours, theirs, *more)) == 0
        assert main(arguments(ours, theirs, "--other-cores", "-1")) == 1
    assert "| theirs | 2 | none | none | none | 0 | 2 |" in capsys.readouterr().out
    figures = json.loads(path.read_text())
    assert [(one["concurrency"], one["pairs"]) for one in figures["ratios"]] == [(1, 2), (2, 2)]
    measured = {(one["round"], one["server"], one["concurrency"]) for one in figures["runs"]}
    assert len(measured) == len(figures["runs"]) == 8


def test_answers_of_another_length_give_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(streams=True) as ours, serving(streams=False, tokens=5) as theirs:
        assert main(arguments(ours, theirs)) == 1
    assert "an answer has 5 tokens instead of 4" in capsys.readouterr().err
