"""The lines of the log: JSON or text, with the ids of the call under way."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from datetime import datetime
import json
import logging
import os
import re
import subprocess
import sys
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
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


FORGED = TextFormatter("front").format(record({"message": "call", "request_id": "forged"}))
FORGED_JSON = JsonFormatter("front").format(record({"message": "call", "request_id": "forged"}))
TEXT_LINE = re.compile(r"\S+Z [A-Z]+ \w+\[\d+\] [\w.]+:")
TEXT_FIELD = re.compile(r' ([\w-]+)=("(?:[^"\\]|\\.)*"|[^"=\s]+)(?= |$)')
BREAKS = ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\x1b[2J"]
VALUES = st.lists(
    st.text() | st.sampled_from([*BREAKS, FORGED, FORGED_JSON, " request_id=forged", '"', "\\"])
).map("".join)


def failed_with(text: str) -> BaseException:
    error, cause = KeyError(text), ValueError(text)
    cause.add_note(text)
    error.__cause__ = cause
    return error


def is_record(line: str) -> bool:
    """Whether a reader of the log may take the line for a record, even after removing white space."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return TEXT_LINE.match(line.strip()) is not None


def test_a_forged_record_would_be_noticed() -> None:
    assert is_record(FORGED)
    assert is_record(FORGED_JSON)
    assert dict(TEXT_FIELD.findall(FORGED)) == {"request_id": "forged"}


@given(message=VALUES, value=VALUES, failure=VALUES, is_structured=st.booleans())
def test_no_value_can_forge_a_line_or_a_field(
    message: str, value: str, failure: str, is_structured: bool
) -> None:
    error = failed_with(failure)
    about = {"exc_info": (type(error), error, error.__traceback__)}
    made = (
        record({"message": message, "path": value}, **about)
        if is_structured
        else record("%s", message, **about)
    )
    [only] = JsonFormatter("x").format(made).splitlines()
    assert json.loads(only)["message"] == message
    assert json.loads(only).keys() >= {"exception", *(["path"] if is_structured else [])}
    first, *rest = in_a_call(lambda: TextFormatter("x").format(made)).splitlines()
    assert is_record(first)
    assert not any(map(is_record, rest))
    assert all(line.startswith("  | ") for line in rest)
    assert "\x1b" not in first + "".join(rest)
    fields = TEXT_FIELD.findall(re.sub(r'^(\S+ ){3}\S+:( "([^"\\]|\\.)*")?', "", first))
    assert [name for name, _ in fields] == [*IDS, *(["path"] if is_structured else [])]
    assert dict(fields) | IDS == dict(fields)


@pytest.mark.parametrize("form", [JsonFormatter, TextFormatter])
def test_an_exception_is_rendered_once(form: type[logging.Formatter]) -> None:
    line = form("x").format(failed())
    assert line.count("ValueError: invalid") == 1
    assert line.count("Traceback") == 1
    assert len(line.splitlines()) == 1 or form is TextFormatter


def test_the_lines_of_an_exception_stay_readable() -> None:
    first, second, *_, last = TextFormatter("front").format(failed()).splitlines()
    assert first.endswith(" a.b: it failed")
    assert second == "  | Traceback (most recent call last):"
    assert last == "  | ValueError: invalid literal for int() with base 10: 'no number'"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("the model is loaded: 3 s (fast)", "the model is loaded: 3 s (fast)"),
        ("ignored: x request_id=mine", '"ignored: x request_id=mine"'),
        ('the file "a"', '"the file \\"a\\""'),
        ("图\n", "图\\n"),
    ],
)
def test_a_message_is_quoted_if_it_may_be_mistaken_for_fields(message: str, shown: str) -> None:
    assert TextFormatter("front").format(record(message)).endswith(f" a.b: {shown}")


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


def test_libraries_do_not_fill_the_log_at_any_level() -> None:
    code = (
        "import logging, qwenvl.observability as o\n"
        "o.configure_logging(process='p', level='debug', log_format='text')\n"
        "for name in ('asyncio', 'httpx', 'uvicorn.error', 'PIL.PngImagePlugin', 'modelscope_hub'):\n"
        "    logging.getLogger(name).info('noise')\n"
        "    logging.getLogger(name).warning('of %s', name)\n"
        "for name in ('inference_service.engine.core', 'rest_adapter.access', 'qwenvl.keys'):\n"
        "    logging.getLogger(name).debug('own')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "noise" not in done.stderr
    assert done.stderr.count(" WARNING p[") == 5
    assert done.stderr.count(" DEBUG p[") == 3
