"""All metric families of the adapter, and the route GET /metrics.

Label values are from fixed sets: route templates, methods, statuses, reasons of errors; never from a request.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
import time
from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from qwenvl.observability.metrics_server import PATH, Exposition


disable_created_metrics()  # a second series for each, which nobody reads

REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

REQUEST_DURATION: Final = Histogram(
    "http_server_request_duration_seconds",
    "Time of requests, until the last byte of the response.",
    ("http_route", "http_request_method", "http_response_status_code"),
    buckets=(
        *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
        *(30.0, 60.0, 120.0, 300.0, 600.0),
    ),
    registry=REGISTRY,
)
STREAMS_OPEN: Final = Gauge("rest_streams_open", "Streams that are being sent.", registry=REGISTRY)
PENDING_REQUESTS: Final = Gauge(
    "rest_pending_requests",
    "Requests of the API that are not answered to the end, streams included.",
    registry=REGISTRY,
)
CLIENT_DISCONNECTS: Final = Counter(
    "rest_client_disconnects_total",
    "Clients that left while they sent the body, waited for the response, or received a stream.",
    ("phase",),
    registry=REGISTRY,
)
IGNORED_FIELDS: Final = Counter(
    "rest_ignored_fields_total", "Unknown JSON fields that were ignored.", registry=REGISTRY
)
RATE_LIMITED: Final = Counter(
    "rest_rate_limited_total", "Errors with status 429.", ("reason",), registry=REGISTRY
)
ERRORS: Final = Counter(
    "rest_errors_total",
    "Errors, of responses and at the end of streams.",
    ("reason",),
    registry=REGISTRY,
)
NOT_STORED: Final = Counter(
    "rest_responses_not_stored_total",
    "Responses that were answered but not stored, since the store failed or has less room than one of them takes.",
    registry=REGISTRY,
)
ATTEMPT_DURATION: Final = Histogram(
    "grpc_client_attempt_duration_seconds",
    "Time of calls to the inference service; a call that is repeated at another replica counts twice.",
    ("grpc_method", "grpc_status"),
    buckets=(
        *(0.001, 0.003, 0.006, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
        *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    ),
    registry=REGISTRY,
)
ATTEMPTS_STARTED: Final = Counter(
    "grpc_client_attempt_started_total",
    "Calls to the inference service that were begun.",
    ("grpc_method",),
    registry=REGISTRY,
)
for _phase in ("body", "waiting", "stream"):  # so that rates are right from the start
    CLIENT_DISCONNECTS.labels(_phase)
for _reason in ("ENGINE_UNAVAILABLE", "MODEL_LOADING"):  # an autoscaler acts on the first one
    ERRORS.labels(_reason)
_BUILD: Final = Info("qwenvl_adapter_build", "Versions.", registry=REGISTRY)
_BUILD.info({"version": version("qwen-vl-serving")})

_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

EXPOSITION: Final = Exposition(REGISTRY)
# One: those who ask meanwhile share a rendering.
_RENDERER: Final = ThreadPoolExecutor(1, thread_name_prefix="metrics")

router: Final = APIRouter()


@router.get(PATH)
async def metrics(request: Request) -> Response:
    """All metrics of this process, for Prometheus."""
    accept, asked_s = request.headers.get("accept", ""), time.monotonic()
    body, content_type = await asyncio.get_running_loop().run_in_executor(
        _RENDERER, EXPOSITION.render, accept, asked_s
    )
    return Response(body, headers={"content-type": content_type})


def known_method(method: str) -> str:
    """A method of HTTP as a label; others are one, as clients may invent them."""
    return method if method in _METHODS else "_OTHER"
