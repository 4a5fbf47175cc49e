"""What surrounds the routes: keys, ids, errors before a route is found, all in Anthropic's form and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import time

from anthropic.types.shared import ErrorResponse
import pytest
import requests

from qwenvl.errors import BY_REASON
from tests.rest_adapter.anthropic.conftest import URL, body_of, events_of, post, strict
from tests.rest_adapter.conftest import (
    HEARTBEAT_S,
    Adapter,
    open_adapter,
    read_through_silence,
    wait_until,
)


COUNT = f"{URL}/count_tokens"


def assert_error(response: requests.Response, status: int, kind: str) -> str:
    """Checks an error response; returns its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert document["type"] == "error"
    assert document["request_id"] == response.headers["request-id"]
    assert document["error"]["type"] == kind
    return str(document["error"]["message"])


@pytest.fixture(scope="module")
def small() -> Iterator[Adapter]:
    with open_adapter(max_body_mib=1, strict_fields=True) as adapter:
        yield adapter


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("secret\n")
    with open_adapter(api_key_file=str(keys)) as adapter:
        yield adapter


@pytest.mark.parametrize("path", [URL, COUNT, URL + "/", "/" + URL])
@pytest.mark.parametrize(
    "headers", [{"x-api-key": "secret"}, {"authorization": "Bearer secret"}], ids=str
)
def test_the_key_is_in_either_header(guarded: Adapter, path: str, headers: dict[str, str]) -> None:
    assert post(guarded, path=path, headers=headers).status_code == 200
    both = {"x-api-key": "none", "authorization": "Bearer none"} | headers
    assert post(guarded, path=path, headers=both).status_code == 200


@pytest.mark.parametrize("path", [URL, COUNT, f"{URL}/nothing"])
def test_refused_keys(guarded: Adapter, path: str) -> None:
    for headers in ({}, {"x-api-key": "wrong"}):
        refused = post(guarded, path=path, headers=headers)
        assert "API key" in assert_error(refused, 401, "authentication_error")
        assert refused.headers["www-authenticate"] == "Bearer"


def test_errors_before_the_route(small: Adapter) -> None:
    url = small.url + URL
    large = requests.post(url, data=b" " * 2**21, timeout=10)
    assert_error(large, 413, "request_too_large")
    text = requests.post(url, data=b"{}", headers={"content-type": "text/plain"}, timeout=10)
    assert_error(text, 415, "invalid_request_error")
    broken = requests.post(url, data=b"{", timeout=10)
    assert "not valid JSON" in assert_error(broken, 400, "invalid_request_error")
    unknown = post(small, loudly=True)
    assert "loudly" in assert_error(unknown, 400, "invalid_request_error")
    method = requests.get(url, timeout=10)
    assert "does not support GET, but POST" in assert_error(method, 405, "invalid_request_error")
    assert method.headers["allow"] == "OPTIONS, POST"
    missing = requests.get(f"{url}/nothing", timeout=10)
    assert f"POST {COUNT}" in assert_error(missing, 404, "not_found_error")
    batches = requests.post(f"{url}/batches", json={}, timeout=10)
    assert "Message Batches" in assert_error(batches, 400, "invalid_request_error")


def test_other_paths_keep_the_first_dialect(small: Adapter) -> None:
    for path in ("/v1/nothing", "/v1/messages-of-others", "/v1/complete", "/v1"):
        response = requests.post(small.url + path, json={}, timeout=10)
        assert "code" in response.json()["error"]
        assert "request-id" not in response.headers


def test_web_pages_can_read_the_request_id(adapter: Adapter) -> None:
    page = {"origin": "http://localhost:3000"}
    shown = post(adapter, headers=page).headers["access-control-expose-headers"]
    assert "request-id" in shown.replace(" ", "").split(",")


@pytest.mark.parametrize("stream", [True, False])
def test_every_response_has_the_request_id(adapter: Adapter, stream: bool) -> None:
    own = post(adapter, stream=stream)
    assert own.headers["request-id"] == own.headers["x-request-id"]
    named = post(adapter, stream=stream, headers={"x-request-id": "mine"})
    assert named.headers["request-id"] == "mine"
    counted = post(adapter, path=COUNT)
    assert counted.headers["request-id"]


SUBJECTS = {"CONTEXT_LENGTH_EXCEEDED": "prompt is too long"}
STATUS = {"QUEUE_FULL": 529, "GPU_OUT_OF_MEMORY": 529}
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    499: "api_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@pytest.mark.parametrize("path", [URL, COUNT])
@pytest.mark.parametrize("reason", BY_REASON)
def test_every_reason_has_its_status_and_type(adapter: Adapter, reason: str, path: str) -> None:
    row = BY_REASON[reason]
    status = STATUS.get(reason, row.http_status)
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    for stream in (True, False):
        response = post(adapter, f"fail {reason}", path=path, stream=stream)
        message = assert_error(response, status, kind)
        if row.http_status != 500:
            subject = SUBJECTS.get(reason, "temperature")
            assert message == f"{subject}: It is {reason}."
        if kind not in ("conflict_error", "request_too_large"):
            strict(ErrorResponse, response.json())
        if row.retry:
            assert response.headers["retry-after"] == "3"
            assert response.headers.get("x-should-retry") != "false"
        elif status == 409 or status >= 500:
            assert response.headers["x-should-retry"] == "false"


def test_a_stream_that_fails_ends_with_its_error(adapter: Adapter) -> None:
    response = post(adapter, "fail-after 3", stream=True)
    *_, last = events_of(response.text)
    assert last["error"]["type"] == "overloaded_error"
    assert last["request_id"] == response.headers["request-id"]
    assert "message_stop" not in response.text
    assert "[DONE]" not in response.text


@pytest.mark.parametrize("stream", [True, False])
def test_an_aborted_answer_is_an_error(adapter: Adapter, stream: bool) -> None:
    response = post(adapter, "abort", stream=stream)
    if stream:
        *_, last = events_of(response.text)
        assert last["error"]["type"] == "api_error"
    else:
        assert_error(response, 499, "api_error")


def test_an_unknown_model(adapter: Adapter) -> None:
    for name in ("claude-opus-5", ""):
        assert_error(post(adapter, model=name), 404, "not_found_error")


def test_silence_is_filled_with_pings(adapter: Adapter) -> None:
    begin = time.monotonic()
    text = read_through_silence(adapter, URL, body_of("hold", stream=True), "event: ping\n")
    elapsed_s = time.monotonic() - begin
    kinds = [event["type"] for event in events_of(text)]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-1] == "message_stop"
    assert 3 <= kinds.count("ping") <= 1 + elapsed_s / HEARTBEAT_S


def test_a_client_that_leaves_ends_the_work(adapter: Adapter) -> None:
    body = body_of("hang", stream=True)
    with requests.post(adapter.url + URL, json=body, stream=True, timeout=30):
        wait_until(lambda: adapter.seen.running == 1)
    wait_until(lambda: adapter.seen.running == 0)
