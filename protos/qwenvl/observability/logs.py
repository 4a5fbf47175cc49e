"""The log format of all processes: JSON lines or text on standard error."""

from __future__ import annotations

from datetime import UTC, datetime
import json
import logging
import os
import re
import sys
from typing import Any, Final, Literal

from qwenvl.observability.context import current_call


LogFormat = Literal["json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

_OWN_LOGGERS: Final = ("inference_service", "rest_adapter", "qwenvl", "__main__")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LIKE_FIELDS: Final = re.compile(r"[=\"]")
_BARE: Final = re.compile(r"[\w./:#@+-]+", re.ASCII)


def default_log_format() -> LogFormat:
    """Text if standard error is a terminal, else JSON."""
    return "text" if sys.stderr.isatty() else "json"


def configure_logging(*, process: str, level: LogLevel, log_format: LogFormat | None) -> None:
    """Sends the log records of this process to standard error, one line each; again, with other settings.

    If the message of a record is a dict, its items become fields of the line, and its item `message` the text. A line
    that is written during a call has the call's ids, see `CallContext.log_fields`.

    Args:
        process: The name of this process for every line.
        level: The lowest level that is logged. Libraries log warnings and errors only: below that they are of no use
            here, and some write URLs and headers, which may contain credentials.
        log_format: `json` or `text`; None = `default_log_format`.
    """
    handler = logging.StreamHandler()
    formatters = {"json": JsonFormatter, "text": TextFormatter}
    handler.setFormatter(formatters[log_format or default_log_format()](process))
    wanted = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    for before in [one for one in root.handlers if isinstance(one.formatter, _Formatter)]:
        root.removeHandler(before)
    logging.basicConfig(level=max(wanted, logging.WARNING), handlers=[handler])
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(wanted)
    logging.captureWarnings(capture=True)


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def _head(self, record: logging.LogRecord) -> dict[str, object]:
        """The fields of every line: time, level and source."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "logger": record.name,
        }

    def _body(self, record: logging.LogRecord) -> dict[str, object]:
        """The message, the fields of a structured record and those of the current call."""
        call = current_call()
        of_call = {} if call is None else call.log_fields()
        message: Any = record.msg
        fields = message if isinstance(message, dict) else {"message": record.getMessage()}
        return {"message": ""} | of_call | fields

    def _exception(self, record: logging.LogRecord) -> str:
        return self.formatException(record.exc_info) if record.exc_info else ""


class JsonFormatter(_Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Renders a record as one line."""
        line = self._head(record) | self._body(record)
        if exception := self._exception(record):
            line["exception"] = exception
        return json.dumps(line, default=str)


class TextFormatter(_Formatter):
    """One line of text per record, followed by the lines of its exception, each after `  | `.

    No value can forge a line or a field: control characters are escaped, and a message that may be mistaken for fields
    is quoted, as values are.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Renders a record."""
        head, fields = self._head(record), self._body(record)
        text = str(fields.pop("message"))
        words = [
            f"{head['time']} {record.levelname} {self._process}[{head['pid']}] {record.name}:",
            *([_message(text)] if text else []),
            *(f"{name}={_quoted(value)}" for name, value in fields.items()),
        ]
        exception = self._exception(record)
        lines = exception.split("\n") if exception else []
        return "\n".join([" ".join(words), *(f"  | {_escaped(line)}" for line in lines)])


def _message(text: str) -> str:
    return json.dumps(text) if _LIKE_FIELDS.search(text) else _escaped(text)


def _escaped(text: str) -> str:
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _quoted(value: object) -> str:
    text = str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)
