"""Builds the context of a gRPC call from its metadata and its deadline."""

from __future__ import annotations

import time
from typing import Any

import grpc.aio

from qwenvl.keys import KeyFile
from qwenvl.observability import REQUEST_ID_ENTRY, CallContext, current_call


Context = grpc.aio.ServicerContext[Any, Any]


def call_context(context: Context, request_timeout_s: float) -> CallContext:
    """Reads the context of a call, before its message is read.

    Args:
        context: The call; the request's id is the metadata's `REQUEST_ID_ENTRY` until its message names another.
        request_timeout_s: Maximum time of a call in seconds; a caller's deadline can only be earlier.
    """
    remaining_s = context.time_remaining()
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    timeout_s = request_timeout_s if remaining_s is None else min(remaining_s, request_timeout_s)
    return CallContext.from_headers(
        metadata,
        request_id=metadata.get(REQUEST_ID_ENTRY, ""),
        deadline=time.monotonic() + timeout_s,
    )


def has_key(context: Context, keys: KeyFile | None) -> bool:
    """Whether the caller has a known key; without keys (None) everyone has."""
    if keys is None:
        return True
    authorization = dict(context.invocation_metadata() or ()).get("authorization")
    return keys.accepts(authorization if isinstance(authorization, str) else None)


def this_call() -> CallContext:
    """The current call, as entered by the interceptor."""
    call = current_call()
    assert call is not None
    return call
