"""Observability shared by all processes: the context of a call, and one log format."""

from __future__ import annotations

from qwenvl.observability.context import (
    REQUEST_ID_ENTRY,
    CallContext,
    TraceParent,
    current_call,
    enter_call,
    name_call,
)
from qwenvl.observability.logs import LogFormat, LogLevel, configure_logging, default_log_format


__all__ = [
    "REQUEST_ID_ENTRY",
    "CallContext",
    "LogFormat",
    "LogLevel",
    "TraceParent",
    "configure_logging",
    "current_call",
    "default_log_format",
    "enter_call",
    "name_call",
]
