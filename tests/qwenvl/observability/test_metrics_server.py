"""The server of metrics: formats, paths, and clients that are slow, many or gone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import socket
import threading
import time

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.parser import text_string_to_metric_families
import pytest
import requests

from qwenvl.observability import metrics_server
from qwenvl.observability.metrics_server import Exposition, MetricsServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsServer]:
    monkeypatch.setattr(metrics_server, "_MAX_CONNECTION_S", 2.0)
    registry = CollectorRegistry()
    Counter("cakes_total", "Cakes.", registry=registry).inc(3)
    server = MetricsServer(registry, "127.0.0.1:0")
    yield server
    server.close()


def get(server: MetricsServer, path: str = "/metrics", **headers: str) -> requests.Response:
    return requests.get(f"http://127.0.0.1:{server.port}{path}", headers=headers, timeout=20)


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain;version=x", "application/json", "\xff"])
def test_the_text_format_is_the_default(server: MetricsServer, accept: str) -> None:
    response = get(server, accept=accept)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "\ncakes_total 3.0\n" in response.text


@pytest.mark.parametrize("version", ["1.0.0", "99", "abc", ""])
def test_open_metrics_is_served_if_accepted(server: MetricsServer, version: str) -> None:
    response = get(server, accept=f"application/openmetrics-text; version={version}")
    (family,) = text_string_to_metric_families(response.text)
    assert family.name == "cakes"
    assert family.samples[0].value == 3


def test_other_paths_and_methods_are_refused(server: MetricsServer) -> None:
    assert get(server, "/").status_code == 404
    assert get(server, "/metrics/../x").status_code == 404
    assert get(server, "/metrics?name[]=nothing").status_code == 200
    url = f"http://127.0.0.1:{server.port}/metrics"
    assert requests.post(url, data=b"x", timeout=20).status_code == 405


def get_in_time(server: MetricsServer) -> requests.Response:
    """The answer, as soon as there is room for another connection."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return get(server)
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_clients_that_only_connect_are_cut_off(server: MetricsServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        assert get_in_time(server).status_code == 200
        for one in idle:
            one.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
    finally:
        for one in idle:
            one.close()


def test_a_scrape_takes_the_place_of_a_client_that_only_connects(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "_MAX_CONNECTION_S", 600.0)
    monkeypatch.setattr(metrics_server, "_SCRAPE_S", 0.2)
    with contextlib.ExitStack() as opened:
        for _ in range(16):
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert [get_in_time(server).status_code for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 2**20 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 2**17 + b"\r\n",
        b"\x16\x03\x01" + bytes(2**20),
    ],
    ids=["line", "header", "headers", "no http"],
)
def test_a_huge_head_is_refused_before_it_is_read(server: MetricsServer, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as caller:
        answer = b""
        with contextlib.suppress(ConnectionError):
            caller.sendall(head)
        with contextlib.suppress(ConnectionError):
            answer = caller.recv(2**16)
    assert not answer.startswith(b"HTTP/1.0 200")
    assert get(server).status_code == 200


def test_a_client_that_sends_one_byte_after_the_other_is_cut_off(server: MetricsServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        deadline = time.monotonic() + 30
        with contextlib.suppress(OSError):
            while time.monotonic() < deadline:
                slow.send(b"G")
                time.sleep(0.1)
    assert time.monotonic() < deadline
    assert get(server).status_code == 200


def test_a_scrape_does_not_wait_for_silent_connections_that_come_again(
    server: MetricsServer,
) -> None:
    stop = threading.Event()

    def connect() -> None:
        while not stop.is_set():
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", server.port), timeout=20) as one,
            ):
                one.settimeout(0.5)
                one.recv(1)

    with ThreadPoolExecutor(30) as threads:
        for _ in range(30):
            threads.submit(connect)
        try:
            assert [get(server).status_code for _ in range(2)] == [200] * 2
        finally:
            stop.set()


class Slow:
    """A collector that takes some processor time, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.asked += 1
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass
        yield GaugeMetricFamily("asked", "How often.", value=self.asked)


def test_those_who_wait_share_a_rendering_that_begins_after_they_asked() -> None:
    registry, slow = CollectorRegistry(auto_describe=False), Slow()
    registry.register(slow)
    exposition = Exposition(registry)

    def scrape(_: int) -> float:
        asked_s, before = time.monotonic(), slow.asked
        body, _kind = exposition.render("", asked_s)
        value = float(body.split()[-1])
        assert value > before, "it is not older than the question"
        return value

    begin_s = time.monotonic()
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(scrape, range(60)))
    seconds = time.monotonic() - begin_s
    # A rendering takes 0.01 s, and after it comes a pause of 0.1 s.
    assert slow.asked <= 2 + seconds / 0.1


def test_an_address_in_use_is_an_error(server: MetricsServer) -> None:
    with pytest.raises(OSError, match="in use"):
        MetricsServer(CollectorRegistry(), f"127.0.0.1:{server.port}")


def test_a_closed_server_frees_its_port(server: MetricsServer) -> None:
    second = MetricsServer(CollectorRegistry(), "localhost:0")
    second.close()
    MetricsServer(CollectorRegistry(), f"localhost:{second.port}").close()
