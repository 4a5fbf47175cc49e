"""Sends spans to a receiver of OpenTelemetry (OTLP over gRPC).

Needs the packages of the extra `[tracing]`; `tracing` alone imports this module, when a process shall trace. Spans
are sent by a thread of the SDK: a receiver that is slow or away delays no call, its spans are dropped. The standard
variables `OTEL_TRACES_SAMPLER`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_BSP_...` apply.
"""

from __future__ import annotations

from dataclasses import dataclass
import time
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from qwenvl.observability.context import TraceParent
from qwenvl.observability.spans import Attribute, Attributes, Span, Value


_EXPORT_TIMEOUT_S: Final = 3.0
"""For one batch, and so for the last one, for which the end of the process waits."""
# The receiver is in the cluster; `http_proxy` is set for traffic to the internet.
_CHANNEL_OPTIONS: Final[Any] = (("grpc.enable_http_proxy", 0),)
_CLOCK_IS_SET_NS: Final = 100_000_000
_NO_SPANS_AROUND: Final = Context()
"""Nothing of OpenTelemetry is in this process's context: `CallContext` knows the caller's position."""


@dataclass(frozen=True, slots=True)
class _Span:
    span: trace.Span

    @property
    def position(self) -> TraceParent:
        found = self.span.get_span_context()
        return TraceParent(
            trace.format_trace_id(found.trace_id),
            trace.format_span_id(found.span_id),
            f"{int(found.trace_flags):02x}",
        )

    def end(self, attributes: Attributes, *, error: str = "") -> None:
        _finish(self.span, attributes, error)


class OtlpTracer:
    """The `Tracer` of a process.

    Args:
        endpoint: `http://host:port`, or `https://` for TLS.
        process: The name of this process.
        version: Its version.
        exporter: What sends the spans instead of OTLP, for tests.
    """

    def __init__(
        self, endpoint: str, *, process: str, version: str, exporter: SpanExporter | None = None
    ) -> None:
        resource = Resource.create({"service.name": process, "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        if exporter is None:
            exporter = OTLPSpanExporter(
                endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S, channel_options=_CHANNEL_OPTIONS
            )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("qwenvl", version)
        self._epoch = _Epoch()

    def begin(
        self, name: str, kind: str, parent: TraceParent | None, attributes: Attributes
    ) -> Span:
        """See `Tracer`."""
        return _Span(
            self._tracer.start_span(
                name,
                context=_context_of(parent),
                kind=trace.SpanKind[kind],
                attributes=_by_name(attributes),
            )
        )

    def record(
        self,
        name: str,
        parent: TraceParent,
        times_s: tuple[float, float],
        attributes: Attributes,
        error: str,
    ) -> None:
        """See `Tracer`."""
        begin_ns, end_ns = self._epoch.span_ns(times_s)
        span = self._tracer.start_span(name, context=_context_of(parent), start_time=begin_ns)
        _finish(span, attributes, error, end_ns)

    def close(self) -> None:
        """See `Tracer`."""
        self._provider.shutdown()


def _finish(
    span: trace.Span, attributes: Attributes, error: str, end_ns: int | None = None
) -> None:
    span.set_attributes(_by_name(attributes))
    if error:
        span.set_attribute(Attribute.ERROR_TYPE.value, error)
        span.set_status(trace.StatusCode.ERROR)
    span.end(end_ns)


def _by_name(attributes: Attributes) -> dict[str, Value]:
    return {name.value: value for name, value in attributes.items()}


def _context_of(parent: TraceParent | None) -> Context:
    if parent is None:
        return _NO_SPANS_AROUND
    remote = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(parent.flags, 16) & trace.TraceFlags.SAMPLED),
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote), _NO_SPANS_AROUND)


class _Epoch:
    """Moments of `time.monotonic()` as nanoseconds since 1970.

    One distance between the two clocks holds for all of them: read anew for each, whatever the processor does between
    the two readings would move it, and a span could end before it begins. Only a larger change of the distance counts:
    the clock has been set, or the machine has slept.
    """

    def __init__(self) -> None:
        self._offset_ns = _distance_ns()

    def span_ns(self, times_s: tuple[float, float]) -> tuple[int, int]:
        """Begin and end of a span."""
        found_ns = _distance_ns()
        if abs(found_ns - self._offset_ns) > _CLOCK_IS_SET_NS:
            self._offset_ns = found_ns
        begin_ns, end_ns = (self._offset_ns + int(moment_s * 1e9) for moment_s in times_s)
        return begin_ns, end_ns


def _distance_ns() -> int:
    return time.time_ns() - time.monotonic_ns()
