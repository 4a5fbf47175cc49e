"""Traces of calls, in the words of OpenTelemetry; off until `start_tracing`, and then sent by `otlp`.

A process that does not trace imports nothing of OpenTelemetry: each function here returns at once. A span never has
text, images, keys or URLs of a request: its attributes are those of `spans.Attribute`, and nothing else can be set.
"""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any, Final

from qwenvl.observability.context import TraceParent, enter_position, position
from qwenvl.observability.spans import Attributes, Span, Tracer


class _NoSpan:
    """A span of a process that does not trace."""

    position = None

    def end(self, attributes: Attributes, *, error: str = "") -> None:
        """Does nothing."""


NO_SPAN: Final[Span] = _NoSpan()
_tracer: Tracer | None = None


def can_trace() -> bool:
    """Whether the packages of the extra `[tracing]` are installed."""
    with contextlib.suppress(ModuleNotFoundError):
        return all(
            importlib.util.find_spec(f"opentelemetry.{name}") is not None
            for name in ("sdk.trace", "exporter.otlp.proto.grpc")
        )
    return False


def start_tracing(endpoint: str | None, *, process: str, version: str) -> None:
    """Traces this process from now on.

    Args:
        endpoint: Address of the receiver (OTLP over gRPC): `http://host:port`, or `https://` for TLS; None = no traces.
        process: The name of this process.
        version: Its version.

    Raises:
        ModuleNotFoundError: See `can_trace`.
    """
    if endpoint is None:
        return
    from qwenvl.observability.otlp import OtlpTracer  # noqa: PLC0415 - only if there are traces

    use_tracer(OtlpTracer(endpoint, process=process, version=version))


def stop_tracing() -> None:
    """Sends the last spans; no more are recorded."""
    if _tracer is not None:
        _tracer.close()
        use_tracer(None)


def is_tracing() -> bool:
    """Whether this process traces; attributes need not be made otherwise."""
    return _tracer is not None


def use_tracer(tracer: Tracer | None) -> None:
    """Sets the tracer of this process; None = no traces."""
    global _tracer  # noqa: PLW0603 - one for the process, as the log
    _tracer = tracer


def begin_call(name: str, traceparent: str, attributes: Attributes) -> Span:
    """Begins the span of a call that this process serves; what this task and its tasks record is within it.

    Args:
        name: Name of the span, from a fixed set.
        traceparent: The caller's header; empty or malformed = the call begins a trace.
        attributes: What is known at the beginning.
    """
    if _tracer is None:
        return NO_SPAN
    span = _tracer.begin(name, "SERVER", TraceParent.parse(traceparent), attributes)
    enter_position(span.position)
    return span


def begin_request(name: str, attributes: Attributes) -> Span:
    """Begins the span of a call that this process makes; `Span.position` is what the other process shall know."""
    if _tracer is None:
        return NO_SPAN
    return _tracer.begin(name, "CLIENT", position(), attributes)


def record_span(
    name: str,
    begin_s: float,
    end_s: float,
    attributes: Attributes | None = None,
    *,
    error: str = "",
) -> None:
    """Records a part of the current call that is over; none without a call.

    Args:
        name: Name of the part.
        begin_s: When it began, by `time.monotonic()`.
        end_s: When it ended.
        attributes: Its attributes.
        error: The kind of its failure; empty = none.
    """
    parent = position()
    if _tracer is not None and parent is not None:
        _tracer.record(name, parent, (begin_s, end_s), attributes or {}, error)


def with_traceparent(metadata: Any, span: Span) -> list[tuple[str, Any]]:
    """The metadata of a call to another process, in which it is within a span."""
    pairs = [(name, value) for name, value in metadata or () if name != "traceparent"]
    return [*pairs, ("traceparent", str(span.position))]
