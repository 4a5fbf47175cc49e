"""Measures one request for an answer: its metrics, the spans of its trace, and the fields of its log line.

All times are of this process's monotonic clock; the engine tells durations, not times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
from contextvars import ContextVar
import time
from typing import Final

from inference_service.domain import EndReason, Event, Finished, Started, TokenUsage
from inference_service.errors import ServiceError
from inference_service.measures import ChoiceTimings
from inference_service.metrics import families
from qwenvl.observability import PROVIDER, Attribute, Value, record_span


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


_LOGGED: Final = {
    "model": Attribute.MODEL,
    "images": Attribute.IMAGES,
    "prompt_tokens": Attribute.INPUT_TOKENS,
    "image_tokens": Attribute.IMAGE_TOKENS,
    "cached_tokens": Attribute.CACHED_TOKENS,
    "completion_tokens": Attribute.OUTPUT_TOKENS,
}


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
        self._parts_s: dict[str, float] = {}
        self._told: dict[Attribute, Value] = {}

    @contextlib.contextmanager
    def waiting(self, queue: str) -> Iterator[None]:
        """Counts the body as time in a queue."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            end_s = time.monotonic()
            self._waited_s += end_s - begin_s
            self.part("queue", begin_s, end_s, {Attribute.QUEUE: queue})

    def part(
        self,
        name: str,
        begin_s: float,
        end_s: float,
        attributes: Mapping[Attribute, Value] | None = None,
        *,
        error: str = "",
    ) -> None:
        """Notes a part of the request that is over; those of one name may be several, at the same time also.

        Args:
            name: Name of the part, for the trace and, with `_s`, for the log line.
            begin_s: When it began.
            end_s: When it ended.
            attributes: What the trace tells about it.
            error: The kind of its failure; empty = none.
        """
        self._parts_s[name] = self._parts_s.get(name, 0.0) + end_s - begin_s
        record_span(name, begin_s, end_s, attributes, error=error)

    def take(self, index: int, count: int, timings: ChoiceTimings | None) -> None:
        """Measures an output of the engine, when it is read.

        Args:
            index: Index of the choice.
            count: Its number of tokens.
            timings: What the engine measured, with the first token.
        """
        now_s = time.monotonic()
        if timings is not None and index == 0:
            families.QUEUE.observe(self._waited_s + timings.queue_s)
            families.PREFILL.observe(timings.prefill_s)
            self._in_engine(timings, now_s)
        if not count:
            return
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

    def _in_engine(self, timings: ChoiceTimings, now_s: float) -> None:
        """Notes what the engine did until the first token, which came just now; the encoder's work comes first."""
        begin_s = now_s - timings.prefill_s
        queue = {Attribute.QUEUE: "engine"}
        self.part("queue", begin_s - timings.queue_s, begin_s, queue)
        if timings.encode_s:
            self.part("vision_encode", begin_s, begin_s + timings.encode_s)
        self.part("prefill", begin_s + timings.encode_s, now_s)

    def serves(self, model: str, *, choices: int, images: int) -> None:
        """Notes what is asked: the canonical name of the model, and the numbers of answers and of images."""
        self._told |= {
            Attribute.MODEL: model,
            Attribute.CHOICES: choices,
            Attribute.IMAGES: images,
        }

    def observe(self, event: Event) -> None:
        """Measures an event of the answer."""
        match event:
            case Started(usage=usage):
                self._told |= {
                    Attribute.INPUT_TOKENS: usage.prompt_tokens,
                    Attribute.IMAGE_TOKENS: usage.image_tokens,
                }
                self.prompted(usage)
            case Finished(reason=reason):
                # Of several answers, the one that did not stop by itself.
                if self._finish in ("", "stop"):
                    self._finish = _FINISH_REASONS[reason]
            case TokenUsage():
                self._is_complete = True
                self._told |= {
                    Attribute.INPUT_TOKENS: event.prompt_tokens,
                    Attribute.IMAGE_TOKENS: event.image_tokens,
                    Attribute.CACHED_TOKENS: event.cached_tokens,
                    Attribute.OUTPUT_TOKENS: event.completion_tokens,
                }
                tokens = families.TOKEN_USAGE
                tokens.labels(self._operation, "input").observe(event.prompt_tokens)
                tokens.labels(self._operation, "output").observe(event.completion_tokens)

    def decided(self, usage: TokenUsage) -> None:
        """Measures the decisions of a request, for which no token was generated."""
        self.observe(usage)

    def prompted(self, usage: TokenUsage) -> None:
        """Counts the tokens of a prompt, when the engine gets it."""
        families.PROMPT_TOKENS.inc(usage.prompt_tokens)
        families.IMAGE_TOKENS.inc(usage.image_tokens)
        families.VIDEO_TOKENS.inc(usage.video_tokens)

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
            first_s, last_s = self._first_s[index], self._last_s[index]
            families.DECODE.observe(last_s - first_s)
            told = {Attribute.CHOICE: index, Attribute.TOKENS: tokens}
            record_span("decode", first_s, last_s, told)
            if tokens > 1:
                mean = families.TIME_PER_OUTPUT_TOKEN.labels(self._operation)
                mean.observe((last_s - first_s) / (tokens - 1))

    @property
    def attributes(self) -> dict[Attribute, Value]:
        """What the span of the whole request tells."""
        told = {Attribute.OPERATION: self._operation, Attribute.PROVIDER: PROVIDER} | self._told
        if self._finish:
            told[Attribute.FINISH_REASONS] = (self._finish,)
        return told

    @property
    def error(self) -> str:
        """The reason of the error that the call ended with; empty = none."""
        return self._error

    def log_fields(self) -> dict[str, object]:
        """Sizes, timings and outcome for the line of the call; seconds of parts that overlap are added up."""
        fields: dict[str, object] = {
            name: self._told[attribute]
            for name, attribute in _LOGGED.items()
            if attribute in self._told
        }
        if self._first_s:
            fields["first_token_s"] = round(min(self._first_s.values()) - self._begin_s, 4)
        fields |= {f"{name}_s": round(seconds, 4) for name, seconds in self._parts_s.items()}
        if self._finish:
            fields["finish_reason"] = self._finish
        if self._error:
            fields["reason"] = self._error
        return fields

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
