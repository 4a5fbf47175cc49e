"""A receiver of OpenTelemetry's traces (OTLP over gRPC) on loopback, which keeps what it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass, field
import threading

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """A span, and the process that sent it."""

    process: str
    span: Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent_id(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def attributes(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for item in self.span.attributes:
            kind = item.value.WhichOneof("value")
            value = getattr(item.value, kind or "string_value")
            if kind == "array_value":
                value = [each.string_value for each in value.values]
            found[item.key] = value
        return found


@dataclass
class Receiver:
    """What has come so far."""

    endpoint: str = ""
    spans: list[Received] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, request: trace_pb.ExportTraceServiceRequest) -> None:
        with self._changed:
            self.raw.append(request.SerializeToString())
            for resource in request.resource_spans:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [Received(names["service.name"], span) for span in scope.spans]
            self._changed.notify_all()

    def wait_for(self, is_met: Callable[[list[Received]], bool], timeout_s: float = 30) -> None:
        """Waits until what has come suffices."""
        with self._changed:
            met = self._changed.wait_for(lambda: is_met(self.spans), timeout_s)
            assert met, [(one.process, one.name) for one in self.spans]


class _Servicer(trace_grpc.TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(  # noqa: N802 - gRPC's name
        self, request: trace_pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_pb.ExportTraceServiceResponse:
        del context
        self._receiver.take(request)
        return trace_pb.ExportTraceServiceResponse()


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """Runs a receiver."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_grpc.add_TraceServiceServicer_to_server(_Servicer(receiver), server)
    port = server.add_insecure_port("127.0.0.1:0")
    receiver.endpoint = f"http://127.0.0.1:{port}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait()
