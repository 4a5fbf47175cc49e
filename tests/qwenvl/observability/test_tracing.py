"""Spans of one process: who is within whom, what is told, and that nothing happens without a tracer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import itertools
import time
from types import SimpleNamespace

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
import pytest

from qwenvl.observability import (
    NO_SPAN,
    Attribute,
    CallContext,
    begin_call,
    begin_request,
    otlp,
    record_span,
    tracing,
    with_traceparent,
)
from qwenvl.observability.context import TraceParent
from qwenvl.observability.otlp import OtlpTracer


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Kept:
    """A tracer of this process, and the spans that it has sent."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = OtlpTracer("", process="test", version="0", exporter=self._exporter)

    def spans(self) -> list[ReadableSpan]:
        self.tracer.close()
        return list(self._exporter.get_finished_spans())


@pytest.fixture
def kept() -> Iterator[Kept]:
    found = Kept()
    tracing.use_tracer(found.tracer)
    yield found
    tracing.use_tracer(None)
    found.tracer.close()


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return format_span_id(span.parent.span_id)


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format_span_id(span.context.span_id)


async def test_spans_are_within_each_other(kept: Kept) -> None:
    call = begin_call("POST /", f"00-{TRACE}-{SPAN}-01", {Attribute.HTTP_METHOD: "POST"})
    context = CallContext.from_headers({"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert context.traceparent == call.position  # not the caller's: the log leads to the span
    request = begin_request("a.Service/Method", {})
    metadata = with_traceparent([("traceparent", "old"), ("x", "y")], request)
    assert metadata == [("x", "y"), ("traceparent", str(request.position))]
    request.end({Attribute.RPC_STATUS: "UNAVAILABLE"}, error="UNAVAILABLE")
    now_s = time.monotonic()
    await asyncio.create_task(_records(now_s))
    call.end({Attribute.HTTP_STATUS: 200})
    ended, part, outer = kept.spans()
    assert [one.name for one in (ended, part, outer)] == ["a.Service/Method", "queue", "POST /"]
    assert [one.kind for one in (ended, part, outer)] == [
        SpanKind.CLIENT,
        SpanKind.INTERNAL,
        SpanKind.SERVER,
    ]
    assert parent_of(outer) == SPAN
    assert parent_of(ended) == parent_of(part) == id_of(outer)
    assert outer.context is not None
    assert format_trace_id(outer.context.trace_id) == TRACE
    assert outer.attributes == {"http.request.method": "POST", "http.response.status_code": 200}
    assert (ended.status.status_code, outer.status.status_code) == (
        StatusCode.ERROR,
        StatusCode.UNSET,
    )
    assert part.start_time is not None
    assert part.end_time is not None
    assert part.end_time - part.start_time == pytest.approx(0.25e9, abs=1e6)


def test_times_of_spans_keep_their_order_whatever_the_clocks_do(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two readings of the clocks any time may pass; and the clock may be set."""
    wall_ns, lag_ns = itertools.count(10**18, 0), itertools.cycle([0, 7_000_000, 31_000_000, 1])
    clocks = SimpleNamespace(time_ns=lambda: next(wall_ns), monotonic_ns=lambda: next(lag_ns))
    monkeypatch.setattr(otlp, "time", clocks)
    tracer = OtlpTracer("", process="test", version="0", exporter=kept._exporter)
    parent = TraceParent(TRACE, SPAN, "01")
    for index in range(9):
        tracer.record("part", parent, (index * 1e-6, (index + 1) * 1e-6), {}, "")
    hour_ns = 3600 * 10**9
    wall_ns = itertools.count(10**18 - hour_ns, 0)
    tracer.record("after", parent, (9e-6, 9e-6), {}, "")
    tracer.close()
    *parts, after = [
        (span.start_time, span.end_time) for span in kept._exporter.get_finished_spans()
    ]
    begin_ns = parts[0][0]
    assert begin_ns is not None
    assert parts == [(begin_ns + i * 1000, begin_ns + (i + 1) * 1000) for i in range(9)]
    assert after[0] == after[1] == pytest.approx(begin_ns - hour_ns + 9000, abs=31_000_000)


async def _records(now_s: float) -> None:
    """Part of a call, in a task that it has started."""
    record_span("queue", now_s - 0.25, now_s, {Attribute.QUEUE: "batch"})


async def test_calls_at_the_same_time_do_not_mix(kept: Kept) -> None:
    async def call(name: str) -> str:
        span = begin_call(name, "", {})
        await asyncio.sleep(0)
        record_span(f"part of {name}", 0.0, 1.0)
        await asyncio.sleep(0)
        span.end({})
        return str(span.position)

    positions = await asyncio.gather(*(asyncio.create_task(call(str(i))) for i in range(5)))
    assert len({position.split("-")[1] for position in positions}) == 5
    spans = {one.name: one for one in kept.spans()}
    for i in range(5):
        assert parent_of(spans[f"part of {i}"]) == id_of(spans[str(i)])


async def test_a_trace_that_its_caller_does_not_keep_is_passed_on_alone(kept: Kept) -> None:
    call = begin_call("POST /", f"00-{TRACE}-{SPAN}-00", {})
    record_span("queue", 0.0, 1.0)
    call.end({})
    assert kept.spans() == []
    assert str(call.position).endswith("-00")
    assert TRACE in str(call.position)


async def test_parts_without_a_call_are_in_no_trace(kept: Kept) -> None:
    await asyncio.create_task(_records(1.0))
    assert kept.spans() == []


async def test_without_a_tracer_nothing_is_made() -> None:
    assert begin_call("x", f"00-{TRACE}-{SPAN}-01", {}) is NO_SPAN
    assert begin_request("x", {}) is NO_SPAN
    record_span("queue", 0.0, 1.0)
    NO_SPAN.end({})
    context = CallContext.from_headers({"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert str(context.traceparent) == f"00-{TRACE}-{SPAN}-01"
