"""The interface between the gRPC services and a backend, at the level of chats and text completions.

A backend takes requests of `inference_service.domain` and returns its events. The interface does not depend on how they
are computed: by this project's engine, by another library in a process, or by a remote server.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from inference_service.decisions import DecisionRequest, Decisions
from inference_service.domain import Event, ImageInfo, Request, Started, TokenUsage
from inference_service.measures import DeviceMemory, Histogram


class BackendState(Enum):
    """The state of a backend.

    Attributes:
        LOADING: The model is loading for the first time.
        READY: Requests are answered.
        RESTARTING: It failed and is being restarted.
        DRAINING: It accepts no new requests.
        FAILED: It failed and will not be restarted.
    """

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    FAILED = "failed"


class BackendStartError(RuntimeError):
    """The backend could not be started; the message is for the operator."""


class Modality(Enum):
    """A kind of prompt content."""

    TEXT = "text"
    IMAGE = "image"
    VIDEO = "video"


class CoordinateConvention(Enum):
    """The coordinates of bounding boxes in a model's text.

    Attributes:
        NONE: The model writes no boxes.
        PER_MILLE: 0 to 1000, as a fraction of the image's width or height.
        PROCESSED_PIXELS: Pixels of the resized image.
    """

    NONE = "none"
    PER_MILLE = "per_mille"
    PROCESSED_PIXELS = "processed_pixels"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits on the images of a model; pixels are areas.

    Attributes:
        max_images: Maximum images and videos of one request.
        pixel_step: Height and width of a processed image are multiples of this.
        min_pixels: Minimum after resizing.
        max_pixels: Maximum after resizing.
        max_decoded_pixels: Maximum before resizing.
        exif_transposed: The EXIF orientation is applied first.
    """

    max_images: int
    pixel_step: int
    min_pixels: int
    max_pixels: int
    max_decoded_pixels: int
    exif_transposed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """Device memory in bytes; 0 = unknown."""

    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_cache_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """Describes the served model.

    Attributes:
        names: Served names of the model, the canonical one first.
        family: Name of the model's family.
        created: Unix time in seconds.
        modalities: Kinds of content that a prompt may have.
        max_context_tokens: Maximum tokens of prompt and answer together.
        image_limits: Limits on its images.
        coordinate_convention: The coordinates of bounding boxes in its text.
        url_schemes: Schemes of image URLs that are fetched.
        features: Supported features besides text completion.
        parts: (name, parameter count) of its modules; empty = unknown.
        memory: Device memory it needs.
        revision: A digest that changes with the model's files.
    """

    names: tuple[str, ...]
    family: str
    created: int
    modalities: tuple[Modality, ...]
    max_context_tokens: int
    image_limits: ImageLimits
    coordinate_convention: CoordinateConvention = CoordinateConvention.NONE
    url_schemes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    parts: tuple[tuple[str, int], ...] = ()
    memory: MemoryNeed = MemoryNeed()
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The load of a backend; sums count from its start, unknown values are 0.

    Attributes:
        running: Answers being computed.
        waiting: Answers waiting for room in the batch.
        kv_pages_total: Pages of the KV cache.
        kv_pages_used: Pages in use by answers.
        kv_pages_cached: Free pages with reusable prefixes.
        kv_page_tokens: Tokens of one page.
        prefix_queries: Prompt tokens looked up in the prefix cache.
        prefix_hits: Prompt tokens found there.
        prefix_misses: Prompt tokens not found there, by one of `PREFIX_MISS_REASONS`.
        encoder_queries: Images looked up in the encoder cache.
        encoder_hits: Images found there.
        encoder_misses: Images not found there, by one of `ENCODER_MISS_REASONS`.
        preemptions: Answers that were preempted and recomputed.
        pixel_bytes_in_flight: Bytes of processed images of the requests that the engine has or is being sent.
        step_durations: Durations of the steps of the engine.
        encode_durations: How long the steps of the engine encoded images, where they did.
        batch_sizes: Sequences computed together in the steps of the engine.
        device_memory: Memory of the GPU; None = there is none.
        last_step_s: When the engine last reported a step, or that it has none to compute, as `time.monotonic()`; None =
            it has not yet.
    """

    running: int = 0
    waiting: int = 0
    kv_pages_total: int = 0
    kv_pages_used: int = 0
    kv_pages_cached: int = 0
    kv_page_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_misses: Mapping[str, int] = field(default_factory=dict)
    encoder_queries: int = 0
    encoder_hits: int = 0
    encoder_misses: Mapping[str, int] = field(default_factory=dict)
    preemptions: int = 0
    pixel_bytes_in_flight: int = 0
    step_durations: Histogram = field(default_factory=Histogram)
    encode_durations: Histogram = field(default_factory=Histogram)
    batch_sizes: Histogram = field(default_factory=Histogram)
    device_memory: DeviceMemory | None = None
    last_step_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """Runtime information for operators; empty or 0 = unknown.

    Attributes:
        device: The device in use.
        dtype: Dtype of weights and cache.
        slow_path: Why computation is slower than possible on this hardware; empty = it is not.
        restarts: Number of restarts by one of `RESTART_CAUSES`.
        pid: Process id of the engine.
        max_num_seqs: Maximum answers in one batch.
        max_num_batched_tokens: Maximum tokens of one step.
        max_context_tokens: Context window in use.
        load_seconds: Time in which the model was loaded.
    """

    device: str = ""
    dtype: str = ""
    slow_path: str = ""
    restarts: Mapping[str, int] = field(default_factory=dict)
    pid: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    max_context_tokens: int = 0
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCount:
    """The token count of a prompt: its usage, its processed images and its token ids."""

    usage: TokenUsage
    images: tuple[ImageInfo, ...]
    prompt_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPlaceholder:
    """The tokens of a prompt that stand for an image or a video.

    Attributes:
        offset: Index of the first one.
        length: Number of tokens.
        key: The same for the same pixels, size, model and cache salt.
    """

    offset: int
    length: int
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """The prompt of a request, exactly as generation would use it.

    Attributes:
        started: What would be known when generation begins, with the token ids and the text of the prompt.
        placeholders: Where its images and videos are, in order.
        begins_with_reasoning: The prompt has opened the reasoning of the answer.
    """

    started: Started
    placeholders: tuple[MediaPlaceholder, ...]
    begins_with_reasoning: bool


class Vocabulary(Protocol):
    """Turns text into the token ids of a model and back; every call is admitted as a request."""

    async def tokenize(
        self, text: str, request_id: str, caller: str, *, parse_special: bool
    ) -> tuple[int, ...]:
        """The token ids of a text.

        Args:
            text: The text; errors name it as `text`.
            request_id: Identifies the request while it is in flight.
            caller: The caller that sent it; see `Backend.abort`.
            parse_special: Recognise special tokens in the text.

        Raises:
            ServiceError: The text is too long, or the request is not admitted.
        """

    async def detokenize(
        self, token_ids: Sequence[int], request_id: str, caller: str, *, skip_special: bool
    ) -> str:
        """The text of token ids; bytes that are not valid UTF-8 are replaced by U+FFFD.

        Raises:
            ServiceError: An id is outside the vocabulary, or the request is not admitted.
        """

    async def strings(self, token_ids: Sequence[int], caller: str) -> tuple[str, ...]:
        """Tokens as the vocabulary writes them; is part of another call."""


class Backend(Protocol):
    """Answers requests about one model. Belongs to one event loop.

    Metrics read `state`, `info`, `in_flight` and `load` in another thread, too.
    """

    @property
    def state(self) -> BackendState:
        """The current state."""

    @property
    def names(self) -> tuple[str, ...]:
        """Served names of the model, the canonical one first."""

    @property
    def info(self) -> BackendInfo:
        """Runtime information for operators."""

    @property
    def in_flight(self) -> int:
        """Number of requests that are being answered or counted."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the model."""

    def check_admission(self, caller: str) -> None:
        """Refuses a caller before its request is read; `generate` and `count` check again.

        Raises:
            ServiceError: A request of this caller would not be admitted now.
        """

    def generate(self, request: Request, caller: str) -> AsyncGenerator[Event, None]:
        """Yields the events of a request; closing the iterator, in whichever task, aborts the request.

        Args:
            request: The request.
            caller: The caller that sent it; see `abort`.

        Raises:
            ServiceError: The request ended with an error.
        """

    async def count(self, request: Request, caller: str) -> TokenCount:
        """Counts the tokens of a prompt without answering it.

        Raises:
            ServiceError: The request ended with an error.
        """

    async def render(self, request: Request, caller: str) -> Rendered:
        """Checks a request as `generate` does, and returns its prompt without answering it.

        Raises:
            ServiceError: `generate` would refuse the request.
        """

    async def decide(
        self, request: DecisionRequest, caller: str, *, prepared: Callable[[], None]
    ) -> Decisions:
        """Decides questions about one input; cancelling it aborts the request.

        Args:
            request: The request.
            caller: The caller that sent it; see `abort`.
            prepared: Called when images are decoded and text is tokenised.

        Raises:
            ServiceError: The request ended with an error.
        """

    async def abort(self, request_id: str, caller: str | None = None) -> bool:
        """Aborts a request in flight: its answers finish as aborted, or without answers it ends with AbortedError.

        Args:
            request_id: The request.
            caller: The caller; None = an operator, who may abort every request.

        Returns:
            False if the caller has no such request in flight.
        """

    def describe(self) -> ModelDescription:
        """Describes the served model."""

    def load(self) -> Load:
        """The current load."""

    def on_state_change(self, callback: Callable[[BackendState], None]) -> None:
        """Registers a callback for every new state; it must not raise."""

    async def start(self) -> None:
        """Starts the backend and waits until it is ready.

        Raises:
            BackendStartError: It cannot be started; the state is FAILED.
        """

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting requests at once and waits up to `timeout_s` seconds for those in flight."""

    async def close(self) -> None:
        """Ends all requests and frees all resources."""
