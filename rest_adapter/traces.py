"""The span of a request to the REST API, in the words of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Mapping

from qwenvl.observability import NO_SPAN, Attribute, Span, begin_call, is_tracing


def begin_http(method: str, route: str, headers: Mapping[str, str]) -> Span:
    """Begins the span of a request, within that of its caller.

    Args:
        method: Method of HTTP, see `metrics.known_method`.
        route: Template of the route.
        headers: By name in lower case.
    """
    if not is_tracing():
        return NO_SPAN
    told = {Attribute.HTTP_METHOD: method, Attribute.HTTP_ROUTE: route}
    return begin_call(f"{method} {route}", headers.get("traceparent", ""), told)


def end_http(span: Span, status: int, request_id: str, reason: str) -> None:
    """Ends it.

    Args:
        span: The span.
        status: Status of the response, which may have been sent before a stream failed.
        request_id: The request's own id.
        reason: The reason of a failure; empty = none, or an unexpected one.
    """
    error = reason or (str(status) if status >= 500 else "")
    span.end({Attribute.HTTP_STATUS: status, Attribute.REQUEST_ID: request_id}, error=error)
