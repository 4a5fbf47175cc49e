"""The metrics of the adapter: who may read them, and which labels requests get."""

from __future__ import annotations

import os
from pathlib import Path
import signal
import socket
import subprocess
import sys

import pytest
import requests

from qwenvl.errors import BY_REASON
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.support.ports import free_ports
from tests.support.scrape import Scrape, scrape


CHAT = "/v1/chat/completions"
OF_THE_ADAPTER = {
    "BODY_TIMEOUT",
    "INVALID_ENCODING",
    "INVALID_JSON",
    "INVALID_REQUEST",
    "MALFORMED_REQUEST",
    "METHOD_NOT_ALLOWED",
    "MISSING_FIELD",
    "NOT_FOUND",
    "PREVIOUS_RESPONSE_NOT_FOUND",
    "STORE_UNAVAILABLE",
    "UNKNOWN_FIELD",
    "UNSUPPORTED_API",
    "UNSUPPORTED_MEDIA_TYPE",
}
"""Reasons of errors that the service does not have."""
HTTP = "http_server_request_duration_seconds_count"


def scraped(adapter: Adapter) -> Scrape:
    return scrape(f"127.0.0.1:{adapter.port}")


def test_they_need_a_key_as_all_other_paths(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-one\n")
    with open_adapter(api_key_file=str(tmp_path / "keys")) as adapter:
        url = f"{adapter.url}/metrics"
        assert requests.get(url, timeout=10).status_code == 401
        assert requests.get(url, headers={"x-api-key": "no"}, timeout=10).status_code == 401
        response = requests.get(url, headers={"authorization": "Bearer key-one"}, timeout=10)
        assert response.status_code == 200
        assert "key-one" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "labels"),
    [
        ("GET", "/health", ("/health", "GET", "200")),
        ("HEAD", "/health", ("/health", "HEAD", "200")),
        ("GET", "//health/", ("/health", "GET", "200")),
        ("DELETE", "/health", ("/health", "DELETE", "405")),
        ("BREW", "/health", ("/health", "_OTHER", "405")),
        ("GET", "/no/such/path", ("", "GET", "404")),
        ("POST", CHAT, (CHAT, "POST", "400")),
        ("OPTIONS", CHAT, (CHAT, "OPTIONS", "204")),
    ],
)
def test_a_request_has_the_label_of_its_route(
    adapter: Adapter, method: str, path: str, labels: tuple[str, ...]
) -> None:
    names = ("http_route", "http_request_method", "http_response_status_code")
    wanted = dict(zip(names, labels, strict=True))
    before = scraped(adapter).value(HTTP, **wanted)
    requests.request(method, adapter.url + path, data=b"" if method == "POST" else None, timeout=10)
    wait_until(lambda: scraped(adapter).value(HTTP, **wanted) == before + 1)


def test_models_share_one_label(adapter: Adapter) -> None:
    for name in ("demo", "secret-one", "secret-two"):
        requests.get(f"{adapter.url}/v1/models/{name}", timeout=10)
    found = scraped(adapter)
    assert "secret" not in found.text
    assert any("{" in route for route in found.values_of("http_route"))


def test_reasons_of_errors_are_few(adapter: Adapter) -> None:
    for body in (b"{", b"[]", b'{"model": "demo"}', b'{"model": "demo", "messages": "secret"}'):
        assert adapter.post(body).status_code == 400
    found = scraped(adapter)
    assert found.value("rest_errors_total", reason="INVALID_JSON") > 0
    assert "secret" not in found.text
    assert found.values_of("reason") <= {*BY_REASON, *OF_THE_ADAPTER}


def test_a_client_that_leaves_within_its_body_is_counted(adapter: Adapter) -> None:
    name = "rest_client_disconnects_total"
    before = scraped(adapter).value(name, phase="body")
    with socket.create_connection(("127.0.0.1", adapter.port)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
        )
    wait_until(lambda: scraped(adapter).value(name, phase="body") == before + 1)


def test_an_address_of_its_own_needs_no_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-one\n")
    ports = free_ports(2)
    command = [
        *(sys.executable, "-m", "rest_adapter", "--http-address", f"127.0.0.1:{ports[0]}"),
        *("--http-metrics-address", f"127.0.0.1:{ports[1]}"),
        *("--api-key-file", str(tmp_path / "keys")),
    ]
    with subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(ports[0]), timeout_s=60)
            assert scrape(f"127.0.0.1:{ports[1]}").value("rest_streams_open") == 0
            second = subprocess.run(
                [*command[:4], "127.0.0.1:0", *command[5:]],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert second.returncode == 1
            assert "--http-metrics-address=127.0.0.1" in second.stderr
            assert "Traceback" not in second.stderr
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False
