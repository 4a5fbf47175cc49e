"""All metric families of the service but those that are read from the backend (`grpc_api/backend_metrics.py`).

They belong to this process. Families of a model have no label for it here: the process serves one, whose name
`exposition` adds. Label values are from fixed sets, never from a request. Names and buckets of `gen_ai_...` are
OpenTelemetry's for generative AI, those of `grpc_...` gRPC's (proposal A66).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)


disable_created_metrics()  # a second series for each, which nobody reads

REGISTRY: Final = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)

_LATENCY_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S: Final = (*_LATENCY_S, 30.0, 60.0, 120.0, 300.0, 600.0)


def _counter(name: str, text: str, label: str = "", values: tuple[str, ...] = ()) -> Counter:
    """A counter; one whose label has few values has all of its series from the start, so that rates are right."""
    counter = Counter(name, text, (label,) if label else (), registry=REGISTRY)
    for value in values:
        counter.labels(value)
    return counter


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


# Requests for answers.
REQUEST_DURATION: Final = _histogram(
    "gen_ai_server_request_duration_seconds",
    "Time of requests for answers, from the call to its end, failed ones included.",
    tuple(0.01 * 2**k for k in range(14)),
    "gen_ai_operation_name",
    "error_type",
)
TIME_TO_FIRST_TOKEN: Final = _histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "Time from the call to the first token of its answer.",
    (
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08),
        *(0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    ),
    "gen_ai_operation_name",
)
TIME_PER_OUTPUT_TOKEN: Final = _histogram(
    "gen_ai_server_time_per_output_token_seconds",
    "Mean time of a token after the first one, of each answer.",
    (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    "gen_ai_operation_name",
)
TOKEN_USAGE: Final = _histogram(
    "gen_ai_client_token_usage_tokens",
    "Tokens of each answered request: of its prompt (input) and of its answers (output).",
    tuple(4.0**k for k in range(14)),
    "gen_ai_operation_name",
    "gen_ai_token_type",
)
REQUESTS_FINISHED: Final = _counter(
    "qwenvl_requests_finished_total",
    "Requests that were not refused, by how they ended.",
    "finish_reason",
    ("stop", "length", "cancelled", "deadline", "error"),
)
REQUESTS_REJECTED: Final = _counter(
    "qwenvl_requests_rejected_total",
    "Requests that were refused before an answer began.",
    "reason",
    ("queue_full", "quota", "too_large", "invalid", "draining", "unauthenticated", "unavailable"),
)

# The parts of a request.
QUEUE: Final = _histogram(
    "qwenvl_request_queue_seconds", "Time in the queue, before the engine computes.", _LONG_S
)
PREFILL: Final = _histogram(
    "qwenvl_prefill_seconds", "Time from the queue to the first token, images included.", _LONG_S
)
DECODE: Final = _histogram(
    "qwenvl_decode_seconds", "Time from the first to the last token of an answer.", _LONG_S
)
INTER_TOKEN: Final = _histogram(
    "qwenvl_inter_token_seconds", "Time between two tokens of an answer.", _LATENCY_S
)
IMAGE_FETCH: Final = _histogram(
    "qwenvl_image_fetch_seconds", "Time to fetch a URL, failed fetches included.", _LONG_S
)
IMAGE_DECODE: Final = _histogram(
    "qwenvl_image_decode_seconds",
    "Time to decode and resize an image or a video, the wait for a worker included.",
    _LONG_S,
)
CONSTRAINT_COMPILE: Final = _histogram(
    "qwenvl_constraint_compile_seconds",
    "Time to try the form that an answer must have; one that is remembered takes none.",
    _LATENCY_S,
)
CONSTRAINTS_REJECTED: Final = _counter(
    "qwenvl_constraint_rejected_total",
    "Forms that cannot be used, or are too complex.",
    "kind",
    ("json_object", "json_schema", "regex", "choices", "grammar"),
)

# Volumes.
PROMPT_TOKENS: Final = _counter(
    "qwenvl_prompt_tokens_total", "Tokens of prompts, image and video tokens included."
)
GENERATION_TOKENS: Final = _counter("qwenvl_generation_tokens_total", "Tokens of answers.")
IMAGE_TOKENS: Final = _counter("qwenvl_image_tokens_total", "Tokens of images in prompts.")
VIDEO_TOKENS: Final = _counter("qwenvl_video_tokens_total", "Tokens of videos in prompts.")
IMAGES: Final = _counter(
    "qwenvl_images_total", "Image files that were sent or fetched, equal ones once.", "format"
)
MEDIA_FETCHES: Final = _counter(
    "qwenvl_media_fetch_total",
    "Fetches of URLs, by how they ended.",
    "result",
    (
        *("ok", "not_image", "policy", "invalid_url", "dns", "connection", "status"),
        *("timeout", "too_large", "no_memory", "cancelled"),
    ),
)

# gRPC. The boundaries are some of those that gRPC uses.
CALLS_STARTED: Final = _counter(
    "grpc_server_call_started_total", "Calls of known methods.", "grpc_method"
)
CALL_DURATION: Final = _histogram(
    "grpc_server_call_duration_seconds",
    "Time of calls of known methods.",
    (
        0.001,
        0.003,
        0.006,
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1.0,
        2.0,
        5.0,
        10.0,
        20.0,
        50.0,
        100.0,
    ),
    "grpc_method",
    "grpc_status",
)
