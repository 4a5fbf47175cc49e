"""The load that every answer reports to its caller: an ORCA report in the trailers of the call (gRPC A51).

Balancers such as `weighted_round_robin` (gRPC A58) and Envoy read it and prefer the replica with less load. The message
is `xds.data.orca.v3.OrcaLoadReport`; only the fields that are sent are described here, with the numbers and types of
the original. Its pool is private, so that a program may load the original beside it.
"""

from __future__ import annotations

from collections.abc import Callable
import math
import time
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from inference_service.backend.base import Backend, BackendInfo, Load


LOAD_KEY: Final = "endpoint-load-metrics-bin"
_RATE_WINDOW_S: Final = 10.0
_DOUBLE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_DOUBLE
_STRING: Final = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_MESSAGE: Final = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
_MAPS: Final = {"utilization": 5, "named_metrics": 8}
_DOUBLES: Final = {"rps_fractional": 6, "eps": 7, "application_utilization": 9}


class Rate:
    """A rate of events per second, of which older ones count exponentially less.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s = clock()
        self._per_second = 0.0

    def count(self, events: int = 1) -> float:
        """Counts events of this moment, and returns the rate."""
        now_s = self._clock()
        self._per_second *= math.exp((self._last_s - now_s) / _RATE_WINDOW_S)
        self._per_second += events / _RATE_WINDOW_S
        self._last_s = now_s
        return self._per_second


class LoadReports:
    """Makes the report of each answer that ends.

    Args:
        backend: Its load and limits are reported.
        clock: Seconds.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._answers = Rate(clock)
        self._errors = Rate(clock)

    def end(self, failed: bool) -> bytes:
        """Counts an answer that has ended, and returns the serialised report.

        Args:
            failed: The service failed to answer; a mistake of the caller is no failure of the service.
        """
        rates = (self._answers.count(), self._errors.count(int(failed)))
        return report(self._backend.load(), self._backend.info, *rates)


def report(load: Load, info: BackendInfo, answers: float, errors: float) -> bytes:
    """A serialised `OrcaLoadReport`.

    Args:
        load: The load of the backend.
        info: The limits of the backend.
        answers: Answers per second.
        errors: Failures of the service per second.
    """
    batch = _share(load.running, info.max_num_seqs)
    cache = _share(load.kv_pages_used, load.kv_pages_total)
    # What waits is load, too: above 1, which is allowed here and not in `utilization`.
    queued = _share(load.running + load.waiting, info.max_num_seqs)
    message = _OrcaLoadReport(
        rps_fractional=answers,
        eps=errors,
        application_utilization=max(queued, cache),
        utilization={"batch": min(batch, 1.0), "kv_cache": min(cache, 1.0)},
        named_metrics={
            "running_requests": load.running,
            "waiting_requests": load.waiting,
            "kv_pages_used": load.kv_pages_used,
            "kv_pages_total": load.kv_pages_total,
        },
    )
    return bytes(message.SerializeToString())


def _share(used: int, total: int) -> float:
    return used / total if total > 0 else 0.0


def _report_class() -> Any:
    """The class of the message, from its description."""
    package = "xds.data.orca.v3"
    file = descriptor_pb2.FileDescriptorProto(
        name="xds/data/orca/v3/orca_load_report.proto", package=package, syntax="proto3"
    )
    message = file.message_type.add(name="OrcaLoadReport")

    def add(kind: int, name: str, number: int, **fields: Any) -> None:
        optional = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
        values = {"name": name, "number": number, "type": kind, "label": optional} | fields
        message.field.add(**values)

    for name, number in _DOUBLES.items():
        add(_DOUBLE, name, number)
    for name, number in _MAPS.items():
        entry = f"{name.title().replace('_', '')}Entry"
        pair = message.nested_type.add(name=entry, options={"map_entry": True})
        pair.field.add(name="key", number=1, type=_STRING, label="LABEL_OPTIONAL")
        pair.field.add(name="value", number=2, type=_DOUBLE, label="LABEL_OPTIONAL")
        kind = f".{package}.OrcaLoadReport.{entry}"
        add(_MESSAGE, name, number, type_name=kind, label="LABEL_REPEATED")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.OrcaLoadReport"))


_OrcaLoadReport: Final = _report_class()
