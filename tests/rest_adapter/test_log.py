"""What an operator finds in the log about a request that failed, and what connects it with what the caller saw."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter
import pytest
import requests

from qwenvl.observability.logs import JsonFormatter
from rest_adapter.app import DIALECTS
from rest_adapter.body import LINGER_SILENCE_S
from rest_adapter.dialect import Dialect
from rest_adapter.openai.errors import render_error, render_error_event
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.rest_adapter.raw_http import connect, head, read_to_end, with_length


def access_lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines: list[Any] = [r.msg for r in caplog.records if r.name == "rest_adapter.access"]
    return lines


FAILURES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "wrong type": ({"temperature": "hot"}, 400, "INVALID_ARGUMENT", "temperature"),
    "wrong content": (
        {"messages": [{"role": "user", "content": 7}]},
        400,
        "INVALID_ARGUMENT",
        "messages[0].content",
    ),
    "of the service": ({"text": "fail QUEUE_FULL"}, 429, "QUEUE_FULL", "temperature"),
    "internal": ({"text": "fail INTERNAL"}, 500, "INTERNAL", ""),
    "within a stream": (
        {"text": "fail-after 1", "stream": True},
        200,
        "ENGINE_UNAVAILABLE",
        "temperature",
    ),
}


@pytest.mark.parametrize("case", FAILURES)
def test_the_access_line_has_reason_and_field(
    adapter: Adapter, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    fields, status, reason, field = FAILURES[case]
    caplog.set_level("INFO", "rest_adapter")
    response = adapter.ask(**fields, headers={"x-request-id": "of-the-client"})
    wait_until(lambda: access_lines(caplog) != [])
    (line,) = access_lines(caplog)
    assert (line["status"], line["reason"]) == (status, reason)
    assert str(line.get("field", "")).startswith(field)
    assert line["client_request_id"] == "of-the-client"
    if status != 200:
        assert response.json()["error"]["request_id"] == "of-the-client"


def test_the_access_line_does_not_wait_for_an_unread_body(
    adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rest_adapter")
    with connect(adapter) as connection:
        connection.sendall(head("POST", "/nothing", "content-length: 1000"))
        read_to_end(connection)
    (line,) = access_lines(caplog)
    assert (line["status"], line["reason"]) == (404, "NOT_FOUND")
    assert line["duration_s"] < LINGER_SILENCE_S


LONG = "X" * 20_000
LONG_PARTS = {
    "method": head(LONG, "/v1/models"),
    "method of no route": head(LONG, "/"),
    "path": head("GET", f"/{LONG}"),
    "query": head("GET", f"/v1/models?{LONG}={LONG[:5000]}"),
    "version": head("GET", "/v1/models", version=LONG),
    "host": head("GET", "/v1/models", host=LONG),
    "name of a header": head("GET", "/v1/models", f"{LONG}: 1"),
    "no header": head("GET", "/v1/models", LONG),
    "no request": f"{LONG}\r\n\r\n".encode(),
    "field": with_length(f'{{"model": "demo", "{LONG}": {{"{LONG}": 1}}}}'.encode()),
    "wrong field": with_length(f'{{"model": "demo", "tools": [{{"{LONG}": 1}}]}}'.encode()),
    "coding": with_length(b"{}", f"content-encoding: {LONG}"),
    "type": with_length(b"{}", f"content-type: {LONG}"),
    "length": head("POST", "/v1/chat/completions", f"content-length: {LONG}"),
} | {
    name: head("GET", "/v1/models", f"{name}: {LONG}")
    for name in ("x-request-id", "traceparent", "authorization", "origin", "user-agent")
}


@pytest.mark.parametrize("part", LONG_PARTS)
def test_no_caller_writes_long_lines(
    adapter: Adapter, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """The head of a request has up to 32 KiB, and is read before any key."""
    caplog.set_level("DEBUG", "rest_adapter")
    with connect(adapter) as connection:
        connection.sendall(LONG_PARTS[part])
        assert connection.recv(65536)
        wait_until(lambda: caplog.records != [])
    formatter = JsonFormatter("rest-adapter")
    lines = [formatter.format(record) for record in caplog.records]
    assert max(map(len, lines)) < 3000, lines


def test_a_request_that_succeeds_has_no_reason(
    adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rest_adapter")
    assert adapter.ask().status_code == 200
    wait_until(lambda: access_lines(caplog) != [])
    assert not {"reason", "field"} & access_lines(caplog)[0].keys()


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/nothing", 404), ("/v1/conversations", 400), ("/v1/models/none", 404)]
)
def test_error_bodies_have_the_request_id(adapter: Adapter, path: str, status: int) -> None:
    response = requests.get(adapter.url + path, timeout=10)
    assert response.status_code == status
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


router = APIRouter()


@router.get("/v1/faulty/defect")
async def defect() -> None:
    raise ZeroDivisionError("the text of the defect")


FAULTY = Dialect(
    prefix="/v1/faulty",
    router=router,
    authorizations_of=lambda _: (),
    challenge=None,
    render_error=render_error,
    render_error_event=render_error_event,
    stream_end=b"",
)


def test_a_defect_is_logged_with_text_id_and_traceback(caplog: pytest.LogCaptureFixture) -> None:
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter("rest-adapter").format(record))

    collector = Collector()
    logging.getLogger("rest_adapter").addHandler(collector)
    try:
        with open_adapter((*DIALECTS, FAULTY)) as adapter:
            headers = {"origin": "http://localhost:3000"}
            url = f"{adapter.url}/v1/faulty/defect"
            response = requests.get(url, headers=headers, timeout=10)
    finally:
        logging.getLogger("rest_adapter").removeHandler(collector)
    assert response.status_code == 500
    assert "access-control-allow-origin" in response.headers
    error = response.json()["error"]
    assert "defect" not in error["message"]
    (line,) = (line for line in lines if '"level": "error"' in line)
    for word in (error["request_id"], "ZeroDivisionError", "the text of the defect", "Traceback"):
        assert word in line


def test_a_failure_of_the_service_is_logged(
    adapter: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("ERROR", "rest_adapter")
    assert adapter.ask("fail INTERNAL").status_code == 500
    wait_until(lambda: caplog.records != [])
    line: Any = caplog.records[0].msg
    assert (line["code"], line["detail"]) == ("INTERNAL", "It is INTERNAL.")
    assert caplog.records[0].exc_info is not None
