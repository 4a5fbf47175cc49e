"""Observability shared by all processes: the context of a call, its trace, and one log format."""

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
from qwenvl.observability.spans import PROVIDER, Attribute, Attributes, Span, Value
from qwenvl.observability.tracing import (
    NO_SPAN,
    begin_call,
    begin_request,
    can_trace,
    is_tracing,
    record_span,
    start_tracing,
    stop_tracing,
    with_traceparent,
)


__all__ = [
    "NO_SPAN",
    "PROVIDER",
    "REQUEST_ID_ENTRY",
    "Attribute",
    "Attributes",
    "CallContext",
    "LogFormat",
    "LogLevel",
    "Span",
    "TraceParent",
    "Value",
    "begin_call",
    "begin_request",
    "can_trace",
    "configure_logging",
    "current_call",
    "default_log_format",
    "enter_call",
    "is_tracing",
    "name_call",
    "record_span",
    "start_tracing",
    "stop_tracing",
    "with_traceparent",
]
