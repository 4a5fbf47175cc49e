"""Reads and writes `google.rpc.Status`, the details of an error, without googleapis-common-protos.

The messages have a descriptor pool of their own, so that they never collide with the generated ones, which a program
may have installed as well. On the wire they are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import functools
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message


TRAILER: Final = "grpc-status-details-bin"
"""Key of the trailing metadata that holds a serialised `google.rpc.Status`."""

_TYPE_URL: Final = "type.googleapis.com/"
_Field = descriptor_pb2.FieldDescriptorProto
_INT32: Final = _Field.TYPE_INT32
_INT64: Final = _Field.TYPE_INT64
_STRING: Final = _Field.TYPE_STRING
_BYTES: Final = _Field.TYPE_BYTES
# Message -> field -> (number, type). A type as text is a message; with `*` the field is repeated. On the wire, a map
# field is a list of entries.
_MESSAGES: Final[Mapping[str, Mapping[str, tuple[int, Any]]]] = {
    "Any": {"type_url": (1, _STRING), "value": (2, _BYTES)},
    "Duration": {"seconds": (1, _INT64), "nanos": (2, _INT32)},
    "Entry": {"key": (1, _STRING), "value": (2, _STRING)},
    "FieldViolation": {"field": (1, _STRING), "description": (2, _STRING), "reason": (3, _STRING)},
    "Status": {"code": (1, _INT32), "message": (2, _STRING), "details": (3, "*Any")},
    "ErrorInfo": {"reason": (1, _STRING), "domain": (2, _STRING), "metadata": (3, "*Entry")},
    "RetryInfo": {"retry_delay": (1, "Duration")},
    "BadRequest": {"field_violations": (1, "*FieldViolation")},
    "RequestInfo": {"request_id": (1, _STRING), "serving_data": (2, _STRING)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """The details of an error that this service sends.

    Attributes:
        reason: `ErrorInfo.reason`; None if there is no ErrorInfo.
        domain: `ErrorInfo.domain`.
        metadata: `ErrorInfo.metadata`.
        field: Path of the first invalid field of `BadRequest`, or empty.
        retry_after_s: `RetryInfo.retry_delay` in seconds, or None.
        request_id: `RequestInfo.request_id`, or empty.
    """

    reason: str | None = None
    domain: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    field: str = ""
    retry_after_s: float | None = None
    request_id: str = ""


def read_details(status: bytes) -> Details:
    """Reads a serialised `google.rpc.Status`; what is malformed or unknown is ignored."""
    values: dict[str, Any] = {}
    try:
        for detail in _new("Status", status).details:
            kind = detail.type_url.rpartition("/google.rpc.")[2]
            values |= _values_of(kind, detail.value)
    except DecodeError:
        return Details()
    return Details(**values)


def write_details(code: int, message: str, details: Details) -> bytes:
    """Serialises a `google.rpc.Status` with these details; those without a value are left out.

    Args:
        code: Number of the gRPC status.
        message: Text of the status.
        details: The details.
    """
    messages = [
        _new(
            "ErrorInfo",
            reason=details.reason or "",
            domain=details.domain,
            metadata=[{"key": key, "value": value} for key, value in details.metadata.items()],
        )
    ]
    if details.field:
        messages.append(_new("BadRequest", field_violations=[{"field": details.field}]))
    if details.retry_after_s is not None:
        seconds, fraction = divmod(details.retry_after_s, 1)
        delay = {"seconds": int(seconds), "nanos": int(fraction * 1e9)}
        messages.append(_new("RetryInfo", retry_delay=delay))
    messages.append(_new("RequestInfo", request_id=details.request_id))
    packed = [
        {"type_url": _TYPE_URL + item.DESCRIPTOR.full_name, "value": item.SerializeToString()}
        for item in messages
    ]
    status = _new("Status", code=code, message=message, details=packed)
    return bytes(status.SerializeToString())


def _values_of(kind: str, data: bytes) -> dict[str, Any]:
    """The fields of `Details` that one detail gives."""
    match kind:
        case "ErrorInfo":
            info = _new(kind, data)
            metadata = {entry.key: entry.value for entry in info.metadata}
            return {"reason": info.reason, "domain": info.domain, "metadata": metadata}
        case "BadRequest":
            violations = _new(kind, data).field_violations
            return {"field": violations[0].field} if violations else {}
        case "RetryInfo":
            delay = _new(kind, data).retry_delay
            return {"retry_after_s": delay.seconds + delay.nanos / 1e9}
        case "RequestInfo":
            return {"request_id": _new(kind, data).request_id}
    return {}


def _new(kind: str, data: bytes = b"", **fields: Any) -> Any:
    """A message of `google.rpc`, from its serialised form or from its fields."""
    message = _classes()[kind](**fields)
    message.MergeFromString(data)
    return message


@functools.cache
def _classes() -> Mapping[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="google/rpc/details.proto", package="google.rpc", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            message.field.append(_field_of(field, number, kind))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
        for name in _MESSAGES
    }


def _field_of(name: str, number: int, kind: Any) -> descriptor_pb2.FieldDescriptorProto:
    is_repeated = isinstance(kind, str) and kind.startswith("*")
    field = _Field(
        name=name,
        number=number,
        label=_Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL,
    )
    if isinstance(kind, str):
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".google.rpc.{kind.removeprefix('*')}"
    else:
        field.type = kind
    return field
