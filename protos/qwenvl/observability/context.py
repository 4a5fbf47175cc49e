"""The context of a call: its ids, who makes it, its trace and its deadline."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
import hashlib
import re
from typing import Final, Self
import uuid


CONTEXT_HEADERS: Final = ("authorization", "traceparent", "x-request-id")
"""The HTTP headers, or the gRPC metadata, that a context is made from."""

_CLIENT_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?"
)
_MAX_REQUEST_ID: Final = 128
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
        """Reads a `traceparent` header; None if it is malformed, as the standard demands to ignore it then."""
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
    """What is known about a call besides its content.

    Attributes:
        request_id: The request's own id, unique among the requests in flight.
        client_request_id: The client's `x-request-id`, which may be the same for several calls; None = not sent.
        caller: SHA-256 of the `authorization` value in hexadecimal; empty without one: such callers are not told apart.
        traceparent: The caller's position in a trace; None = none, and no trace is made up.
        deadline: When the call ends at the latest, as `time.monotonic()` in seconds; None = not limited here.
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
        """Makes the context of a call from its HTTP headers or gRPC metadata.

        Args:
            headers: By name in lower case. A malformed `x-request-id` or `traceparent` is ignored.
            request_id: The request's own id, shortened to 128 characters; empty = a new one is made.
            deadline: When the call ends at the latest, as `time.monotonic()` in seconds.
        """
        client_request_id = headers.get("x-request-id", "")
        authorization = headers.get("authorization", "")
        return cls(
            request_id=request_id[:_MAX_REQUEST_ID] or f"req-{uuid.uuid4().hex}",
            client_request_id=(
                client_request_id if _CLIENT_REQUEST_ID.fullmatch(client_request_id) else None
            ),
            caller=hashlib.sha256(authorization.encode()).hexdigest() if authorization else "",
            traceparent=TraceParent.parse(headers.get("traceparent", "")),
            deadline=deadline,
        )

    def log_fields(self) -> dict[str, str]:
        """What a log line says about the call."""
        fields = {"request_id": self.request_id}
        if self.client_request_id is not None:
            fields["client_request_id"] = self.client_request_id
        if self.traceparent is not None:
            fields["trace_id"] = self.traceparent.trace_id
            fields["span_id"] = self.traceparent.span_id
        if self.caller:
            fields["caller"] = self.caller[:_SHOWN_DIGITS]
        return fields


_current: ContextVar[CallContext | None] = ContextVar("qwenvl_current_call", default=None)


def enter_call(call: CallContext) -> None:
    """Makes a call the current one of this task, and of the tasks that it starts.

    There is no way back: both servers run every call in a task of its own.
    """
    _current.set(call)


def name_call(request_id: str) -> str:
    """Gives the call under way the id that its request names, where that is known only after its headers.

    Args:
        request_id: The id; empty = the request names none.

    Returns:
        The id that the call has now.

    Raises:
        LookupError: No call is under way.
    """
    call = current_call()
    if call is None:
        raise LookupError("no call is under way")
    if request_id:
        enter_call(replace(call, request_id=request_id[:_MAX_REQUEST_ID]))
    return request_id or call.request_id


def current_call() -> CallContext | None:
    """The call under way in this task."""
    return _current.get()
