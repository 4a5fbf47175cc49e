"""Builds the context of a gRPC call from its metadata, its request and its deadline."""

from __future__ import annotations

import time
from typing import Any

import grpc.aio

from qwenvl.observability import REQUEST_ID_ENTRY, CallContext, current_call


Context = grpc.aio.ServicerContext[Any, Any]


def call_context(request: Any, context: Context, request_timeout_s: float) -> CallContext:
    """Reads the context of a call.

    Args:
        request: The message; the request's id is its `spec.request_id`, else the metadata's `REQUEST_ID_ENTRY`.
        context: The call.
        request_timeout_s: Timeout of a call without a deadline, in seconds.
    """
    remaining_s = context.time_remaining()
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    of_message = getattr(getattr(request, "spec", None), "request_id", "")
    return CallContext.from_headers(
        metadata,
        request_id=of_message or metadata.get(REQUEST_ID_ENTRY, ""),
        deadline=time.monotonic() + (request_timeout_s if remaining_s is None else remaining_s),
    )


def this_call() -> CallContext:
    """The current call, as entered by the interceptors."""
    call = current_call()
    assert call is not None
    return call
