"""The interceptor that measures and traces every call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
import contextlib
import inspect
import time
from typing import Any, Final

import grpc
import grpc.aio

from inference_service.grpc_api.call_context import Context, has_key
from inference_service.metrics.families import CALL_DURATION, CALLS_STARTED
from inference_service.metrics.requests import RequestRecord, enter_request
from qwenvl.keys import KeyFile
from qwenvl.observability import (
    NO_SPAN,
    Attribute,
    Span,
    Value,
    begin_call,
    current_call,
    is_tracing,
)


_OPERATIONS: Final = {
    "qwenvl.inference.v1.ChatService/CreateChatCompletion": "chat",
    "qwenvl.inference.v1.ChatService/StreamChatCompletion": "chat",
    "qwenvl.inference.v1.CompletionService/CreateCompletion": "text_completion",
    "qwenvl.inference.v1.CompletionService/StreamCompletion": "text_completion",
    "qwenvl.inference.v1.DecisionService/CreateDecisions": "decisions",
}
"""The methods that answer requests, and what OpenTelemetry calls their operation."""

_OWN: Final = "qwenvl."
_DEADLINE_SLACK_S: Final = 0.1
"""How much earlier than here a deadline may pass at the caller."""


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Measures the calls of known methods; those of unknown ones would have names that callers choose.

    Args:
        keys: The known keys; None = no authentication. A call without one has no span, so that no stranger can fill the
            place where traces are kept.
    """

    def __init__(self, keys: KeyFile | None) -> None:
        self._keys = keys

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kinds = [
            "stream" if many else "unary"
            for many in (handler.request_streaming, handler.response_streaming)
        ]
        method = handler_call_details.method.removeprefix("/")
        behaviour = _measured(getattr(handler, "_".join(kinds)), method, self._keys)
        make = getattr(grpc, f"{'_'.join(kinds)}_rpc_method_handler")
        return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _measured(
    behaviour: Callable[[Any, Context], Any], method: str, keys: KeyFile | None
) -> Callable[..., Any]:
    """The method with the same way to answer: by returning, by yielding, or by writing to the context."""

    async def answer(request: Any, context: Context) -> Any:
        with _measuring(method, context, keys):
            return await behaviour(request, context)

    async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
        with _measuring(method, context, keys):
            async with contextlib.aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

    return stream if inspect.isasyncgenfunction(behaviour) else answer


@contextlib.contextmanager
def _measuring(method: str, context: Context, keys: KeyFile | None) -> Iterator[None]:
    CALLS_STARTED.labels(method).inc()
    begin_s, code = time.monotonic(), "UNKNOWN"
    operation = _OPERATIONS.get(method)
    record, span = None, _span(method, context, keys)
    if operation is not None:
        record = RequestRecord(operation)
        enter_request(record)
    try:
        yield
        code = _code_of(context)
    except grpc.aio.AbortError:
        code = _code_of(context)
        raise
    except BaseException as error:
        if not isinstance(error, Exception):  # cancelled by the caller, or by the end of its time
            left_s = context.time_remaining()
            is_late = left_s is not None and left_s <= _DEADLINE_SLACK_S
            code = "DEADLINE_EXCEEDED" if is_late else "CANCELLED"
        raise
    finally:
        CALL_DURATION.labels(method, code).observe(time.monotonic() - begin_s)
        if record is not None:
            record.end(code)
        _end_span(span, record, code)


def _span(method: str, context: Context, keys: KeyFile | None) -> Span:
    """The span of a call; probes, reflection and strangers have none."""
    if not is_tracing() or not method.startswith(_OWN) or not has_key(context, keys):
        return NO_SPAN
    headers = dict(context.invocation_metadata() or ())
    traceparent = headers.get("traceparent")
    told = {Attribute.RPC_SYSTEM: "grpc", Attribute.RPC_METHOD: method}
    return begin_call(method, traceparent if isinstance(traceparent, str) else "", told)


def _end_span(span: Span, record: RequestRecord | None, code: str) -> None:
    if span is NO_SPAN:
        return
    told: dict[Attribute, Value] = {Attribute.RPC_STATUS: code}
    if (call := current_call()) is not None:
        told[Attribute.REQUEST_ID] = call.request_id
    if record is not None:
        told |= record.attributes
    error = "" if code == "OK" else (record and record.error) or code
    span.end(told, error=error)


def _code_of(context: Context) -> str:
    """The name of the status that was set; OK if none was."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else _BY_NUMBER.get(code, "OK")


_BY_NUMBER: Final = {code.value[0]: code.name for code in grpc.StatusCode}
