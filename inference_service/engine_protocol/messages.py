"""The values that cross the border between the front and the engine process.

Requests, sampling parameters, outputs, statistics and the engine's configuration, as frozen dataclasses that msgspec
encodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from inference_service.errors import ServiceError
from inference_service.sampling import Sampling


class FinishReason(Enum):
    """Why a choice ended in the engine. Stop strings are found by the front."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"  # noqa: S105 - a name, no password
    LENGTH = "length"
    CONTEXT_LENGTH = "context_length"
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(Sampling):
    """How the tokens of a request's choices are sampled; every default is resolved already.

    Attributes:
        logprobs: Number of likeliest tokens to return for every token of the answer; None = no log probabilities.
        prompt_logprobs: The same for the prompt, returned with choice 0.
        eos_token_ids: The model's own end tokens.
        stop_token_ids: The caller's end tokens.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpan:
    """An image or a video of a prompt.

    Attributes:
        key: 32 bytes: sha256 over the processed pixels, both sizes, the family's policy, the model's revision and the
            cache salt; of a video its time step too.
        start: Index in the prompt of its first placeholder token.
        num_tokens: Placeholder tokens it takes.
        grid: (temporal, rows, columns) in patches, before merging.
        height: Pixels of the processed image.
        width: Pixels of the processed image.
        pixel_offset: Where its RGB uint8 pixels (frames x height x width x 3, C order) begin in the request's pixel
            buffer.
        frames: Frames of a video; an image has one.
        time_step: Positions on the time axis from one row of the grid's temporal axis to the next.
    """

    key: bytes
    start: int
    num_tokens: int
    grid: tuple[int, int, int]
    height: int
    width: int
    pixel_offset: int
    frames: int = 1
    time_step: float = 1.0

    @property
    def pixel_bytes(self) -> int:
        """Size of the processed pixels in bytes."""
        return self.frames * self.height * self.width * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A prompt and the number of answers (choices) to compute for it.

    Attributes:
        request_id: Unique among the requests in flight.
        prompt_token_ids: At least one id; placeholder ids where images stand.
        images: Images in order of `start`; the spans do not overlap.
        sampling: How tokens are sampled, the same for all choices.
        num_choices: Answers to compute, at least 1; they differ by their sampling noise.
        cache_salt: Prefix pages are shared only among equal salts.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    num_choices: int = 1
    images: tuple[ImageSpan, ...] = ()
    cache_salt: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log probabilities at one position (natural logarithm, before temperature and filters).

    Attributes:
        token_id: The token chosen, or standing in the prompt.
        logprob: Its log probability.
        rank: 1 = the likeliest.
        top: (token id, log probability) of the likeliest tokens, likeliest first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFailure:
    """Why the engine refused or gave up a choice: the parts of a `ServiceError` that cross the process border.

    Attributes:
        reason: A reason of `qwenvl.errors`.
        message: What the caller reads; a fixed text of our own with figures, never a parser's.
        metadata: The figures of the message, for machines.
        retry_after_s: When to try again, if that can help.
    """

    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: ServiceError) -> EngineFailure:
        """What crosses of an error; the engine knows no fields of the caller's request."""
        return cls(
            reason=error.reason,
            message=error.message,
            metadata=error.metadata,
            retry_after_s=error.retry_after_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOutput:
    """What one engine step added to one choice of a request.

    Attributes:
        request_id: The request.
        choice_index: Which of its choices.
        token_ids: New tokens, in order; an end token is included.
        logprobs: One entry for every new token, if asked for.
        prompt_logprobs: Entries for further prompt tokens, if asked for; they begin at the second token
            of the prompt and are complete before the first new token.
        num_cached_tokens: Prompt tokens found in the prefix cache; set on the choice's first output only.
        finish_reason: Set on the choice's last output.
        failure: Set when `finish_reason` is ERROR.
    """

    request_id: str
    choice_index: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached_tokens: int | None = None
    finish_reason: FinishReason | None = None
    failure: EngineFailure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters of the engine at one moment; sums count from its start."""

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
    steps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine process is started with.

    Attributes:
        model_dir: Directory with config.json and safetensors.
        dtype: `auto`, `float32`, `float16` or `bfloat16`; auto = the checkpoint's on a GPU, float32 on a CPU.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, or where one GPU is too small several: `cuda:0,cuda:1`.
        max_model_len: Context window in tokens; None = the model's own.
        max_num_seqs: Most sequences in one batch.
        max_num_batched_tokens: Token budget of one step (chunked prefill).
        page_size: Tokens of one KV page.
        num_kv_pages: Size of the KV cache; None = from memory.
        gpu_memory_utilization: Share of the device's memory that weights and caches may take.
        cpu_kv_cache_bytes: Memory for the KV cache on a CPU.
        encoder_cache_tokens: Image tokens kept in the encoder cache.
        enable_prefix_caching: Reuse pages of equal prefixes.
        cpu_threads: torch threads on a CPU; None = all cores.
    """

    model_dir: str
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    page_size: int = 16
    num_kv_pages: int | None = None
    gpu_memory_utilization: float = 0.9
    cpu_kv_cache_bytes: int = 256 * 2**20
    encoder_cache_tokens: int = 16384
    enable_prefix_caching: bool = True
    cpu_threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReady:
    """The engine has loaded its model and takes requests.

    Attributes:
        device: The device in use: `cpu`, `cuda:0`; several with commas.
        dtype: Dtype of weights and cache: `float32`, `float16`, `bfloat16`.
        max_model_len: Context window in tokens, after the size of the cache was taken into account.
        kv_pages_total: Pages of the KV cache.
        kv_page_tokens: Tokens of one page.
        kv_bytes_per_token: Cache bytes of one token.
        weight_bytes: Bytes of the weights as loaded.
        parts: (name, parameter count) of vision, adapter, language.
        load_seconds: Time from start to ready.
        slow_path: Why steps take longer than they need to on this hardware; empty = they do not.
    """

    device: str
    dtype: str
    max_model_len: int
    kv_pages_total: int
    kv_page_tokens: int
    kv_bytes_per_token: int
    weight_bytes: int
    parts: tuple[tuple[str, int], ...] = field(default=())
    load_seconds: float = 0.0
    slow_path: str = ""
