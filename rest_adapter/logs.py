"""Logs as JSON lines on standard error.

Owns the form of a line.
"""

from __future__ import annotations

from datetime import UTC, datetime
import logging

import orjson


class JsonLines(logging.Formatter):
    """One JSON object for every record; a message that is a dict becomes fields of it."""

    def format(self, record: logging.LogRecord) -> str:
        """Renders a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        if isinstance(record.msg, dict):
            line |= record.msg
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
