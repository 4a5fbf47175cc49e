"""The context of a call: its ids, its caller, its trace and its deadline."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
import re
from typing import Final, Self
import uuid

from qwenvl.keys import digest_of, key_of


REQUEST_ID_ENTRY: Final = "qwenvl-request-id"
"""gRPC metadata: the request id for a call whose message has none; the adapter sends its own."""

_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?"
)
_SHOWN_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A position in a distributed trace (https://www.w3.org/TR/trace-context/).

    Attributes:
        trace_id: The trace: 32 hexadecimal digits, not all zero.
        span_id: The caller's span: 16 hexadecimal digits, not all zero.
        flags: The trace flags: 2 hexadecimal digits.
    """

    trace_id: str
    span_id: str
    flags: str

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """Parses a `traceparent` header; None if it is malformed, as the standard requires ignoring it."""
        match = _TRACEPARENT.fullmatch(header)
        if match is None or match["version"] == "ff":
            return None
        if match["more"] is not None and match["version"] == "00":
            return None  # only a later version may add fields
        if not match["trace"].strip("0") or not match["span"].strip("0"):
            return None
        return cls(match["trace"], match["span"], match["flags"])

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallContext:
    """The metadata of a call.

    Attributes:
        request_id: The request's own id, unique among the requests in flight.
        client_request_id: The client's `x-request-id`, which may be the same for several calls; None = not sent.
        caller: SHA-256 of the API key in hexadecimal; empty without a key (one shared caller).
        traceparent: The position of the call in a trace: its own span, or the caller's if this process does not trace;
            None = in none.
        deadline: The deadline as `time.monotonic()` in seconds; None = no deadline.
    """

    request_id: str
    client_request_id: str | None = None
    caller: str = ""
    traceparent: TraceParent | None = None
    deadline: float | None = None

    @classmethod
    def from_headers(
        cls, headers: Mapping[str, str], *, request_id: str = "", deadline: float | None = None
    ) -> Self:
        """Creates the context of a call from its HTTP headers or gRPC metadata.

        Args:
            headers: By name in lower case. A malformed `x-request-id` or `traceparent` is ignored.
            request_id: The request's own id; empty or malformed = a new one is generated.
            deadline: The deadline as `time.monotonic()` in seconds.
        """
        key = key_of(headers.get("authorization"))
        return cls(
            request_id=_valid(request_id) or f"req-{uuid.uuid4().hex}",
            client_request_id=_valid(headers.get("x-request-id", "")),
            caller=digest_of(key).hex() if key else "",
            traceparent=position() or TraceParent.parse(headers.get("traceparent", "")),
            deadline=deadline,
        )

    def log_fields(self) -> dict[str, str]:
        """The fields of the call in a log line."""
        fields = {"request_id": self.request_id}
        if self.client_request_id is not None:
            fields["client_request_id"] = self.client_request_id
        if self.traceparent is not None:
            fields["trace_id"] = self.traceparent.trace_id
            fields["span_id"] = self.traceparent.span_id
        if self.caller:
            fields["caller"] = self.caller[:_SHOWN_DIGITS]
        return fields


def _valid(request_id: str) -> str | None:
    return request_id if _REQUEST_ID.fullmatch(request_id) else None


_position: ContextVar[TraceParent | None] = ContextVar("qwenvl_position", default=None)


def enter_position(own: TraceParent | None) -> None:
    """Makes a span that of this task and of the tasks that it starts; it is entered before the call."""
    _position.set(own)


def position() -> TraceParent | None:
    """The current span of this process; None = it does not trace, or there is no call."""
    return _position.get()


_current: ContextVar[CallContext | None] = ContextVar("qwenvl_current_call", default=None)


def enter_call(call: CallContext) -> None:
    """Makes a call the current one of this task and of the tasks that it starts.

    It need not be left, as both servers run every call in a separate task.
    """
    _current.set(call)


def name_call(request_id: str) -> str:
    """Sets the request id of the current call, if it is known only after the headers.

    Args:
        request_id: The id; empty or malformed = keep the generated one.

    Returns:
        The id as given, which the service refuses if it is malformed; the generated one if it is empty.

    Raises:
        LookupError: There is no current call.
    """
    call = current_call()
    if call is None:
        raise LookupError("there is no current call")
    if _valid(request_id):
        enter_call(replace(call, request_id=request_id))
    return request_id or call.request_id


def current_call() -> CallContext | None:
    """The current call of this task, if any."""
    return _current.get()
