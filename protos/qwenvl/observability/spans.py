"""What a span is: its attributes, which are all in one table, and what makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

from qwenvl.observability.context import TraceParent


class Attribute(StrEnum):
    """All attributes of spans: OpenTelemetry's names where it has one, else ours."""

    ERROR_TYPE = "error.type"
    HTTP_METHOD = "http.request.method"
    HTTP_ROUTE = "http.route"
    HTTP_STATUS = "http.response.status_code"
    RPC_SYSTEM = "rpc.system.name"
    RPC_METHOD = "rpc.method"
    RPC_STATUS = "rpc.response.status_code"
    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    MODEL = "gen_ai.request.model"
    CHOICES = "gen_ai.request.choice.count"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    REQUEST_ID = "qwenvl.request.id"
    IMAGES = "qwenvl.request.images"
    IMAGE_TOKENS = "qwenvl.usage.image_tokens"
    CHOICE = "qwenvl.choice.index"
    TOKENS = "qwenvl.choice.tokens"
    QUEUE = "qwenvl.queue.name"
    FETCH_RESULT = "qwenvl.fetch.result"


Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[Attribute, Value]
PROVIDER: Final = "qwenvl"


class Span(Protocol):
    """A span that is under way."""

    @property
    def position(self) -> TraceParent | None:
        """Where calls and spans within it are in the trace; None = where they would be without it."""
        ...

    def end(self, attributes: Attributes, *, error: str = "") -> None:
        """Ends it.

        Args:
            attributes: Further attributes.
            error: The kind of failure, from a fixed set; empty = none.
        """
        ...


class Tracer(Protocol):
    """Begins spans and sends those that have ended."""

    def begin(
        self, name: str, kind: str, parent: TraceParent | None, attributes: Attributes
    ) -> Span:
        """Begins a span; `kind` is a name of OpenTelemetry's `SpanKind`."""
        ...

    def record(
        self,
        name: str,
        parent: TraceParent,
        times_s: tuple[float, float],
        attributes: Attributes,
        error: str,
    ) -> None:
        """Records a span that is over; its beginning and end are of `time.monotonic()`."""
        ...

    def close(self) -> None:
        """Sends what has ended, for a few seconds at most."""
        ...
