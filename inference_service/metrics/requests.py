"""Measures one request for an answer, and counts how it ended.

All times are of this process's monotonic clock; the engine tells durations, not times.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from contextvars import ContextVar
import time
from typing import Final

from inference_service.domain import EndReason, Event, Finished, Started, TokenUsage
from inference_service.errors import ServiceError
from inference_service.measures import ChoiceTimings
from inference_service.metrics import families


ERROR_KINDS: Final = {
    "QUEUE_FULL": ("rejected", "queue_full"),
    "RATE_LIMIT_EXCEEDED": ("rejected", "quota"),
    "DRAINING": ("rejected", "draining"),
    "UNAUTHENTICATED": ("rejected", "unauthenticated"),
    "PERMISSION_DENIED": ("rejected", "unauthenticated"),
    "MODEL_LOADING": ("rejected", "unavailable"),
    "ENGINE_UNAVAILABLE": ("rejected", "unavailable"),
    "ABORTED": ("finished", "cancelled"),
    "DEADLINE_EXCEEDED": ("finished", "deadline"),
    "INTERNAL": ("finished", "error"),
    "GPU_OUT_OF_MEMORY": ("finished", "error"),
    "CONSTRAINT_FAILED": ("finished", "error"),
    **dict.fromkeys(
        ("MESSAGE_TOO_LARGE", "IMAGE_TOO_LARGE", "TOO_MANY_IMAGES", "CONTEXT_LENGTH_EXCEEDED"),
        ("rejected", "too_large"),
    ),
    **dict.fromkeys(
        (
            *("INVALID_ARGUMENT", "INVALID_IMAGE", "INVALID_IMAGE_URL", "IMAGE_URL_REFUSED"),
            *("IMAGE_FETCH_FAILED", "IMAGE_FETCH_TIMEOUT", "UNSUPPORTED_PARAMETER"),
            *("MODEL_NOT_FOUND", "REQUEST_ID_IN_USE"),
        ),
        ("rejected", "invalid"),
    ),
}
"""For every reason of an error: which counter counts it, and the value of its label."""

_FINISH_REASONS: Final = {
    EndReason.STOP: "stop",
    EndReason.TOOL_CALLS: "stop",
    EndReason.LENGTH: "length",
    EndReason.CONTEXT_LENGTH: "length",
    EndReason.ABORTED: "cancelled",
}
_FINISHED_BY_CODE: Final = {"CANCELLED": "cancelled", "DEADLINE_EXCEEDED": "deadline"}


class RequestRecord:
    """What is measured about one request, from the call to its end."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._begin_s = time.monotonic()
        self._waited_s = 0.0
        self._first_s: dict[int, float] = {}  # by choice: when its first and its last token came
        self._last_s: dict[int, float] = {}
        self._tokens: dict[int, int] = {}
        self._finish = ""
        self._is_complete = False
        self._error = ""

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the body as time in the queue."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self._waited_s += time.monotonic() - begin_s

    def take(self, index: int, count: int, timings: ChoiceTimings | None) -> None:
        """Measures an output of the engine, when it is read.

        Args:
            index: Index of the choice.
            count: Its number of tokens.
            timings: What the engine measured, with the first token.
        """
        if timings is not None and index == 0:
            families.QUEUE.observe(self._waited_s + timings.queue_s)
            families.PREFILL.observe(timings.prefill_s)
        if not count:
            return
        now_s = time.monotonic()
        families.GENERATION_TOKENS.inc(count)
        if not self._first_s:
            first = families.TIME_TO_FIRST_TOKEN.labels(self._operation)
            first.observe(now_s - self._begin_s)
        if index in self._last_s:
            # Several tokens in one output were read late, or computed at once: each took its part.
            for _ in range(count):
                families.INTER_TOKEN.observe((now_s - self._last_s[index]) / count)
        self._first_s.setdefault(index, now_s)
        self._last_s[index] = now_s
        self._tokens[index] = self._tokens.get(index, 0) + count

    def observe(self, event: Event) -> None:
        """Measures an event of the answer."""
        match event:
            case Started(usage=usage):
                families.PROMPT_TOKENS.inc(usage.prompt_tokens)
                families.IMAGE_TOKENS.inc(usage.image_tokens)
                families.VIDEO_TOKENS.inc(usage.video_tokens)
            case Finished(reason=reason):
                # Of several answers, the one that did not stop by itself.
                if self._finish in ("", "stop"):
                    self._finish = _FINISH_REASONS[reason]
            case TokenUsage():
                self._is_complete = True
                tokens = families.TOKEN_USAGE
                tokens.labels(self._operation, "input").observe(event.prompt_tokens)
                tokens.labels(self._operation, "output").observe(event.completion_tokens)

    def decided(self, usage: TokenUsage) -> None:
        """Measures the decisions of a request, for which no token was generated."""
        families.PROMPT_TOKENS.inc(usage.prompt_tokens)
        families.IMAGE_TOKENS.inc(usage.image_tokens)
        families.VIDEO_TOKENS.inc(usage.video_tokens)
        self.observe(usage)

    def failed(self, error: ServiceError) -> None:
        """Notes the error that the call ends with."""
        self._error = error.reason

    def end(self, code: str) -> None:
        """Counts the request.

        Args:
            code: Name of the gRPC status that the call ended with.
        """
        if self._is_complete and not self._error:
            families.REQUESTS_FINISHED.labels(self._finish or "stop").inc()
            code = "OK"
        elif self._error:
            code = self._error
            counter, value = ERROR_KINDS.get(self._error, ("finished", "error"))
            self._count_failure(counter, value)
        else:
            families.REQUESTS_FINISHED.labels(_FINISHED_BY_CODE.get(code, "error")).inc()
        seconds = time.monotonic() - self._begin_s
        error_type = "" if code == "OK" else code
        families.REQUEST_DURATION.labels(self._operation, error_type).observe(seconds)
        for index, tokens in self._tokens.items():
            decode_s = self._last_s[index] - self._first_s[index]
            families.DECODE.observe(decode_s)
            if tokens > 1:
                mean = families.TIME_PER_OUTPUT_TOKEN.labels(self._operation)
                mean.observe(decode_s / (tokens - 1))

    def _count_failure(self, counter: str, value: str) -> None:
        has_begun = bool(self._tokens)
        if counter == "rejected" and not has_begun:
            families.REQUESTS_REJECTED.labels(value).inc()
        else:
            value = value if counter == "finished" else "error"
            families.REQUESTS_FINISHED.labels(value).inc()


_current: ContextVar[RequestRecord | None] = ContextVar("qwenvl_request_record", default=None)


def enter_request(record: RequestRecord) -> None:
    """Makes a record the current one of this task and of the tasks that it starts."""
    _current.set(record)


def current_request() -> RequestRecord:
    """The record of the current request; outside of one, a new record that nobody ends."""
    return _current.get() or RequestRecord("chat")
