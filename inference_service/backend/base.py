"""The seam between the gRPC services and what answers requests, at the level of chats and text completions.

A backend takes requests of `inference_service.domain` and gives its events. Nothing here depends on how it computes
them: by our engine, by another library in a process, or by asking a server elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from inference_service.domain import Event, ImageInfo, Request, TokenUsage
from inference_service.model_spec import BoxNotation


class BackendState(Enum):
    """Where a backend is in its life.

    Attributes:
        LOADING: The model is being loaded for the first time.
        READY: Requests are answered.
        RESTARTING: It was lost and is coming back.
        DRAINING: It takes no new requests any more.
        FAILED: It will not come back.
    """

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


class BackendStartError(RuntimeError):
    """The backend never came up; the text says why, for the operator."""


class Modality(Enum):
    """What a prompt may hold."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What images a model reads; pixels are areas.

    Attributes:
        max_images: Maximum images and videos of one request.
        pixel_step: Height and width of a processed image are multiples of this.
        min_pixels: Minimum after resizing.
        max_pixels: Maximum after resizing.
        max_decoded_pixels: Maximum of an image as sent.
        exif_transposed: The EXIF orientation is applied before anything else.
    """

    max_images: int
    pixel_step: int
    min_pixels: int
    max_pixels: int
    max_decoded_pixels: int
    exif_transposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Device memory in bytes; 0 = not known."""

    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_cache_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """What is served.

    Attributes:
        names: Names the model answers to, the canonical one first.
        family: Name of the model's family.
        created: Unix time in seconds.
        modalities: What a prompt may hold.
        max_context_tokens: Maximum tokens of prompt and answer together.
        image_limits: What images it reads.
        box_notation: How its answers name places in an image.
        url_schemes: Schemes of image URLs that are fetched.
        features: What the service can do with it beyond continuing prompts.
        parts: (name, parameter count) of its modules; empty = not known.
        memory: What it needs.
        revision: Changes with the model's files.
    """

    names: tuple[str, ...]
    family: str
    created: int
    modalities: tuple[Modality, ...]
    max_context_tokens: int
    image_limits: ImageLimits
    box_notation: BoxNotation = BoxNotation.NONE
    url_schemes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    parts: tuple[tuple[str, int], ...] = ()
    memory: MemoryNeed = MemoryNeed()
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a backend is; sums count from its start, and what it does not know is 0.

    Attributes:
        running: Answers being computed.
        waiting: Answers waiting for room in the batch.
        kv_pages_total: Pages of the KV cache.
        kv_pages_used: Pages that answers hold.
        kv_pages_cached: Free pages with reusable prefixes.
        kv_page_tokens: Tokens of one page.
        prefix_queries: Prompt tokens looked up in the prefix cache.
        prefix_hits: Prompt tokens found there.
        encoder_queries: Images looked up in the encoder cache.
        encoder_hits: Images found there.
        preemptions: Answers that lost their pages and were computed again.
        pixel_bytes_in_flight: Bytes of processed images of the requests being computed.
    """

    running: int = 0
    waiting: int = 0
    kv_pages_total: int = 0
    kv_pages_used: int = 0
    kv_pages_cached: int = 0
    kv_page_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    encoder_queries: int = 0
    encoder_hits: int = 0
    preemptions: int = 0
    pixel_bytes_in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What an operator may want to know; empty or 0 = not known (yet).

    Attributes:
        device: The device in use.
        dtype: Dtype of weights and cache.
        slow_path: Why answers take longer than they need to on this hardware; empty = they do not.
        restarts: How often it was started again.
        pid: Process id of what computes.
        max_num_seqs: Maximum answers computed side by side.
        max_num_batched_tokens: Maximum tokens of one step.
        max_context_tokens: Context window in use.
    """

    device: str = ""
    dtype: str = ""
    slow_path: str = ""
    restarts: int = 0
    pid: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_context_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """What a prompt would cost: its usage, its images as processed and its token ids."""

    usage: TokenUsage
    images: tuple[ImageInfo, ...]
    prompt_token_ids: tuple[int, ...]


class Backend(Protocol):
    """Answers requests about one model. Belongs to one event loop."""

    @property
    def state(self) -> BackendState:
        """The current state."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names the model answers to, the canonical one first."""

    @property
    def info(self) -> BackendInfo:
        """What an operator may want to know."""

    @property
    def in_flight(self) -> int:
        """Requests that are being answered or counted."""

    def generate(self, request: Request, caller: str) -> AsyncGenerator[Event, None]:
        """Gives the events of a request; closing the iterator aborts what is under way.

        Args:
            request: What is asked.
            caller: Whose request it is; see `abort`.

        Raises:
            ServiceError: The request ended with an error.
        """

    async def count(self, request: Request, caller: str) -> TokenCount:
        """Counts the tokens of a prompt without answering it.

        Raises:
            ServiceError: The request ended with an error.
        """

    async def abort(self, request_id: str, caller: str | None = None) -> bool:
        """Ends a request in flight; its answers finish as aborted.

        Args:
            request_id: The request.
            caller: Who wants it; None = an operator, who may end anybody's.

        Returns:
            False if no such request of the caller's is in flight.
        """

    def describe(self) -> ModelDescription:
        """What is served."""

    def load(self) -> Load:
        """How busy it is now."""

    def on_state_change(self, callback: Callable[[BackendState], None]) -> None:
        """Has `callback` called with every new state; it must not raise."""

    async def start(self) -> None:
        """Starts and waits until requests are answered.

        Raises:
            BackendStartError: It cannot be started; the state is FAILED.
        """

    async def drain(self, timeout_s: float) -> None:
        """Takes no new requests, at once, and waits up to `timeout_s` seconds for those in flight."""

    async def close(self) -> None:
        """Ends all requests and frees what it holds."""
