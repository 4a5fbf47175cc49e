"""What is refused before a conversation is looked at: keys, paths, methods, sizes, slowness."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
import socket
import time
from typing import Any

from fastapi.routing import APIRoute
import pytest
import requests

from rest_adapter.app import create_app
from rest_adapter.settings import AdapterSettings
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until


OPEN = {"/health", "/ready", "/", "/docs", "/openapi.json"}


def assert_openai_error(response: requests.Response, status: int, code: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["code"] is None or isinstance(error["code"], str)
    if code is not None:
        assert error["code"] == code


def routes_of(settings: AdapterSettings) -> list[tuple[str, str]]:
    pairs = []
    pending = list(create_app(settings).routes)
    while pending:
        route = pending.pop()
        if is_group(route):
            group: Any = getattr(route, "original_router", route)
            pending += group.routes
        if isinstance(route, APIRoute):
            pairs += [(method, route.path) for method in route.methods or ()]
    return pairs


def is_group(route: object) -> bool:
    return hasattr(getattr(route, "original_router", route), "routes")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    with open_adapter(api_key_file=str(keys)) as adapter:
        yield adapter, keys


def models_with(adapter: Adapter, authorization: str | None) -> requests.Response:
    headers = {} if authorization is None else {"authorization": authorization}
    return requests.get(f"{adapter.url}/v1/models", headers=headers, timeout=10)


def test_all_routes_want_a_key(guarded: tuple[Adapter, Path]) -> None:
    adapter, keys = guarded
    found = routes_of(AdapterSettings(api_key_file=str(keys)))
    assert ("POST", "/v1/chat/completions") in found
    assert {"/health", "/ready", "/version", "/v1/models"} <= {path for _, path in found}
    others = [("GET", "/nothing"), ("GET", "/redoc"), ("GET", "/v1/")]
    for method, path in found + others:
        if path == "/playground/{name:path}":  # tests/rest_adapter/playground
            continue
        url = adapter.url + path.replace("{name:path}", "demo")
        response = requests.request(method, url, timeout=10)
        if path in OPEN:
            assert response.status_code in (200, 503)
            continue
        assert response.headers["www-authenticate"] == "Bearer"
        if path.startswith("/v1/messages"):
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
        else:
            assert_openai_error(response, 401, "invalid_api_key")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer first-key2",
        "Bearer first-ke",
        "Basic first-key",
        "first-key",
        "Bearer \xff",
    ],
)
def test_wrong_keys(guarded: tuple[Adapter, Path], authorization: str) -> None:
    response = models_with(guarded[0], authorization)
    assert_openai_error(response, 401, "invalid_api_key")
    assert "first-key" not in response.text


@pytest.mark.parametrize("authorization", ["Bearer first-key", "bearer second-key"])
def test_right_keys_are_forwarded(guarded: tuple[Adapter, Path], authorization: str) -> None:
    adapter, _ = guarded
    assert models_with(adapter, authorization).status_code == 200
    assert adapter.ask(headers={"authorization": authorization}).status_code == 200
    assert adapter.seen.metadata[-1]["authorization"] == authorization


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "first-key"},
        {"api-key": "first-key"},
        {"X-API-Key": "first-key"},
        {"authorization": "Bearer EMPTY", "x-api-key": "first-key"},
        {"authorization": "Bearer first-key", "x-api-key": "of the gateway"},
        {"authorization": "Basic Zm9v", "api-key": "first-key"},
        {"x-api-key": "wrong", "api-key": "first-key"},
    ],
)
def test_keys_in_the_headers_of_other_apis(
    guarded: tuple[Adapter, Path], headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rest_adapter.access")
    adapter, _ = guarded
    assert adapter.ask(headers=headers).status_code == 200
    assert adapter.seen.metadata[-1]["authorization"] == "Bearer first-key"
    caller = hashlib.sha256(b"first-key").hexdigest()[:12]
    wait_until(lambda: any(caller in str(record.msg) for record in caplog.records))


@pytest.mark.parametrize("name", ["x-api-key", "api-key"])
@pytest.mark.parametrize("key", ["", "wrong", "first-key2", "Bearer first-key"])
def test_wrong_keys_in_the_headers_of_other_apis(
    guarded: tuple[Adapter, Path], name: str, key: str
) -> None:
    response = guarded[0].ask(headers={name: key})
    assert_openai_error(response, 401, "invalid_api_key")


def test_keys_are_read_again(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    with open_adapter(api_key_file=str(keys)) as adapter:
        assert models_with(adapter, "Bearer old").status_code == 200
        keys.write_text("a-new-one\n")
        assert models_with(adapter, "Bearer old").status_code == 401
        assert models_with(adapter, "Bearer a-new-one").status_code == 200
        keys.unlink()
        assert models_with(adapter, "Bearer a-new-one").status_code == 200


def test_key_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        create_app(AdapterSettings(api_key_file=str(tmp_path / "missing")))


def test_unknown_path_and_method(adapter: Adapter) -> None:
    assert_openai_error(requests.get(f"{adapter.url}/v1/nothing", timeout=10), 404)
    wrong = requests.get(f"{adapter.url}/v1/chat/completions", timeout=10)
    assert_openai_error(wrong, 405)
    assert "POST" in wrong.headers["allow"]


def test_probes(adapter: Adapter) -> None:
    assert requests.get(f"{adapter.url}/ready", timeout=10).status_code == 200
    adapter.set_ready(False)
    assert requests.get(f"{adapter.url}/ready", timeout=10).status_code == 503
    assert requests.get(f"{adapter.url}/health", timeout=10).status_code == 200
    assert requests.get(f"{adapter.url}/version", timeout=10).json()["version"]


@pytest.mark.parametrize("media_type", ["multipart/form-data; boundary=x", "text/plain"])
def test_media_type(adapter: Adapter, media_type: str) -> None:
    response = requests.post(
        f"{adapter.url}/v1/chat/completions",
        data=b"{}",
        headers={"content-type": media_type},
        timeout=10,
    )
    assert_openai_error(response, 415)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"[" * 50_000 + b"]" * 50_000,
        b'{"model":"demo","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"model":"demo","messages":[{"role":"user","content":"\xff\xfe"}]}',
        b'{"model":"demo","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"demo","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_body_that_is_no_request(adapter: Adapter, body: bytes) -> None:
    assert_openai_error(adapter.post(body), 400)


def test_oversized_body_with_its_length(adapter: Adapter) -> None:
    response = adapter.post(b" " * (5 * 2**20))
    assert_openai_error(response, 413, "request_too_large")
    assert adapter.ask().status_code == 200


def test_oversized_body_in_chunks(adapter: Adapter) -> None:
    response = requests.post(
        f"{adapter.url}/v1/chat/completions", data=(b" " * 2**20 for _ in range(6)), timeout=30
    )
    assert_openai_error(response, 413, "request_too_large")
    assert adapter.ask().status_code == 200


def test_declared_size_is_refused_before_it_comes(adapter: Adapter) -> None:
    """Answered or closed within the limit of time, although no byte of the body is sent."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", adapter.port), timeout=15) as client:
        client.sendall(head)
        assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_images_that_are_too_large_together(adapter: Adapter) -> None:
    part = {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + "A" * (800 * 1024)},
    }
    response = adapter.ask(messages=[{"role": "user", "content": [part, part]}])
    assert_openai_error(response, 413, "request_too_large")
    assert adapter.seen.calls == 0


def test_body_that_comes_too_slowly(adapter: Adapter) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", adapter.port), timeout=15) as client:
        client.sendall(head + b'{"model":')
        answer = b""
        while data := client.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error"' in answer


def test_chunked_body_that_drips(adapter: Adapter) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", adapter.port), timeout=15) as client:
        client.sendall(head)
        client.settimeout(0.1)
        deadline = time.monotonic() + 20
        while not answer and time.monotonic() < deadline:
            client.sendall(b"1\r\n \r\n")
            try:
                answer = client.recv(4096)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_strict_fields(adapter: Adapter) -> None:
    assert adapter.ask(no_such_field=1).status_code == 200
    with open_adapter(strict_fields=True) as strict:
        response = strict.ask(no_such_field=1)
        assert_openai_error(response, 400)
        assert response.json()["error"]["param"] == "no_such_field"
        assert strict.ask(user="somebody", metadata={"a": "b"}).status_code == 200


def test_one_trace_id_for_two_requests(adapter: Adapter) -> None:
    """The id of a request in flight is unique even where a gateway sends one header twice."""
    for _ in range(2):
        assert adapter.ask(headers={"x-request-id": "same"}).headers["x-request-id"] == "same"
    assert len({spec.request_id for spec in adapter.seen.specs}) == 2
    adapter.ask(request_id="mine")
    assert adapter.spec.request_id == "mine"


def test_log_line_has_no_content(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    canary = "canary-7f3a"
    headers = {"authorization": f"Bearer {canary}"}
    part = {"type": "image_url", "image_url": {"url": f"https://x.example/{canary}"}}
    adapter.ask(f"{canary} hello", headers=headers)
    adapter.ask(f"fail INVALID_IMAGE {canary}", headers=headers)
    adapter.ask(messages=[{"role": "user", "content": [part]}], stream=True, headers=headers)
    adapter.ask(messages=[{"role": canary, "content": canary}], headers=headers)
    adapter.post(f'{{"model": "{canary}'.encode())
    requests.get(f"{adapter.url}/v1/models?key={canary}", headers=headers, timeout=10)
    records = [record for record in caplog.records if record.name.startswith("rest_adapter")]
    assert any("chat/completions" in str(record.msg) for record in records)
    assert canary not in json.dumps([str(record.msg) + record.getMessage() for record in records])
