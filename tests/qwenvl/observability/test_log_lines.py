"""The lines of the log: JSON or text, with the ids of the call under way."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from datetime import datetime
import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from qwenvl.observability import CallContext, TraceParent, enter_call
from qwenvl.observability.logs import JsonFormatter, TextFormatter


CALL = CallContext(
    request_id="mine",
    client_request_id="client",
    caller="c" * 64,
    traceparent=TraceParent("a" * 32, "b" * 16, "01"),
)
IDS = {
    "request_id": "mine",
    "client_request_id": "client",
    "trace_id": "a" * 32,
    "span_id": "b" * 16,
    "caller": "c" * 12,
}


def record(message: object, *args: object, **fields: Any) -> logging.LogRecord:
    values = {"name": "a.b", "levelname": "WARNING", "msg": message, "args": args, "created": 0.5}
    return logging.makeLogRecord(values | fields)


def in_a_call(function: Callable[[], str]) -> str:
    def run() -> str:
        enter_call(CALL)
        return function()

    return copy_context().run(run)


def failed() -> logging.LogRecord:
    try:
        int("no number")
    except ValueError:
        return record("it failed", exc_info=sys.exc_info())
    raise AssertionError


def test_a_json_line_says_when_where_and_what() -> None:
    line = json.loads(JsonFormatter("engine").format(record("%d images", 3)))
    assert line == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "warning",
        "process": "engine",
        "pid": os.getpid(),
        "logger": "a.b",
        "message": "3 images",
    }
    assert datetime.fromisoformat(line["time"]).timestamp() == 0.5


def test_a_line_has_the_ids_of_the_call_under_way() -> None:
    line = json.loads(in_a_call(lambda: JsonFormatter("x").format(record("hello"))))
    assert line | IDS == line
    text = in_a_call(lambda: TextFormatter("x").format(record("hello")))
    assert text.endswith(" ".join(f"{name}={value}" for name, value in IDS.items()))


def test_items_of_a_structured_record_are_fields_and_win() -> None:
    message = {"message": "call", "seconds": 0.5, "request_id": "other"}
    line = json.loads(in_a_call(lambda: JsonFormatter("x").format(record(message))))
    assert (line["message"], line["seconds"], line["request_id"]) == ("call", 0.5, "other")


def test_a_text_line_can_be_read() -> None:
    message = {"message": "call", "path": "/a b", "status": 200}
    text = TextFormatter("front").format(record(message))
    assert text == (
        f'1970-01-01T00:00:00.500Z WARNING front[{os.getpid()}] a.b: call path="/a b" status=200'
    )


@pytest.mark.parametrize("form", [JsonFormatter, TextFormatter])
def test_no_value_can_forge_a_line(form: type[logging.Formatter]) -> None:
    for message in ("a\nb\x1b[2J\u2028c", {"message": "a\nb", "path": "c\nd\x1b\u2028"}):
        line = form("x").format(record(message))
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line


@pytest.mark.parametrize("form", [JsonFormatter, TextFormatter])
def test_an_exception_is_rendered_once(form: type[logging.Formatter]) -> None:
    line = form("x").format(failed())
    assert line.count("ValueError: invalid") == 1
    assert line.count("Traceback") == 1
    assert len(line.splitlines()) == 1 or form is TextFormatter


@pytest.mark.parametrize(("log_format", "is_json"), [("json", True), ("text", False), (None, True)])
def test_a_process_logs_as_it_is_told(log_format: str | None, is_json: bool) -> None:
    """Without a word, a process whose standard error is no terminal writes JSON."""
    code = (
        "import logging, sys, warnings, qwenvl.observability as o\n"
        f"o.configure_logging(process='p', level='warning', log_format={log_format!r})\n"
        "logging.getLogger('x').info('not shown')\n"
        "logging.getLogger('x').warning('shown')\n"
        "warnings.warn('old', DeprecationWarning)\n"
        "assert not {'grpc', 'google.protobuf', 'pydantic'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    shown, warned = done.stderr.splitlines()[:2]
    assert shown.startswith("{") == is_json
    assert "shown" in shown
    assert "DeprecationWarning: old" in warned
