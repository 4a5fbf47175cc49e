"""The values exchanged between the front and the engine process, as frozen dataclasses that msgspec encodes.

Requests, sampling parameters, outputs, statistics and the engine's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from inference_service.constraint import Constraint
from inference_service.errors import ServiceError
from inference_service.measures import ChoiceTimings, DeviceMemory, Histogram
from inference_service.sampling import Sampling
from qwenvl.observability import LogFormat, LogLevel


class FinishReason(Enum):
    """Why a choice ended in the engine. The front detects stop strings."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"  # noqa: S105 - a name, not a password
    LENGTH = "length"
    CONTEXT_LENGTH = "context_length"
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(Sampling):
    """How the tokens of a request's choices are sampled; all defaults are resolved.

    Attributes:
        logprobs: Number of most likely tokens to return for every token of the answer; None = no log probabilities.
        prompt_logprobs: The same for the prompt, returned with choice 0.
        eos_token_ids: The model's end tokens.
        stop_token_ids: The request's stop tokens.
        allowed_tokens: `allowed_token_ids`, which is empty here, as bits: bit i of byte b is token 8 * b + i, in whole
            words of 4 bytes, as many as cover the vocabulary; empty = all are allowed.
        bad_sequences: `bad_words`, which are empty here, as tokens: two or more of each, as those of a single token are
            in `logit_bias`.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    allowed_tokens: bytes = b""
    bad_sequences: tuple[tuple[int, ...], ...] = ()


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
class Probe:
    """A continuation of a request's prompt; the token after it is not sampled, but judged.

    Attributes:
        token_ids: Ids of text to append to the prompt; may be empty.
        candidate_ids: The ids whose log probabilities to return, at least one.
    """

    token_ids: tuple[int, ...]
    candidate_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        logprobs: Natural logarithms of the probabilities of the candidates, in their order: a log-softmax in float32
            over the whole vocabulary, before any bias, penalty or filter.
        top_id: The most likely token.
    """

    logprobs: tuple[float, ...]
    top_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptMedia:
    """A decoded image or video for an engine that prepares its prompts itself.

    Attributes:
        height: Pixels, as decoded.
        width: Pixels, as decoded.
        pixel_offset: Where its RGB uint8 pixels (frames x height x width x 3, C order) begin in the pixel buffer.
        digest: 32 bytes: sha256 over the pixels and their sizes.
        frames: Frames of a video; an image has one.
        fps: Frames of a video per second; None = it is an image.
    """

    height: int
    width: int
    pixel_offset: int
    digest: bytes
    frames: int = 1
    fps: float | None = None

    @property
    def pixel_bytes(self) -> int:
        """Size of the pixels in bytes."""
        return self.frames * self.height * self.width * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSource:
    """A prompt before its media are expanded and its text is tokenised, by the engine.

    Attributes:
        text: The rendered conversation or the text of a completion, with one placeholder for each image and video.
        token_ids: In place of the text: ids as they are, without media.
        media: Images and videos in order.
        is_guarded: Special tokens that users wrote are marked in the text, see `text.guard`.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    media: tuple[PromptMedia, ...] = ()
    is_guarded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLayout:
    """What became of an image or video in a prompt: the size to which it was resized, and its tokens."""

    height: int
    width: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLayout:
    """A prompt that the engine prepared: its token ids, and what became of its media, in order."""

    token_ids: tuple[int, ...]
    media: tuple[MediaLayout, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A prompt and the number of answers (choices) to compute for it.

    Attributes:
        request_id: Unique among the requests in flight.
        prompt_token_ids: At least one id, with placeholder ids for images.
        images: Images in order of `start`; the spans do not overlap.
        sampling: How tokens are sampled, the same for all choices.
        num_choices: Answers to compute, at least 1; they differ by their sampling noise.
        cache_salt: Prefix pages are shared only among equal salts.
        caller: Whose it is, opaque: callers share the engine fairly.
        constraint: The form that every answer must have.
        constraint_after: The constraint begins after the first token of the answer with this id; None = at once.
        probes: If there are any, nothing is generated: choice i is probe i, and `num_choices` is their number.
        source: What `prompt_token_ids` were made of, if the engine prepares its prompts itself; `images` is empty then.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    num_choices: int = 1
    images: tuple[ImageSpan, ...] = ()
    cache_salt: bytes = b""
    caller: str = ""
    constraint: Constraint | None = None
    constraint_after: int | None = None
    probes: tuple[Probe, ...] = ()
    source: PromptSource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionLogprobs:
    """Log probabilities at one position (natural logarithm, before temperature and filters).

    Attributes:
        token_id: The sampled token, or the token of the prompt.
        logprob: Its log probability.
        rank: 1 = the most likely.
        top: (token id, log probability) of the most likely tokens, in descending order.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFailure:
    """Why the engine refused or failed a choice: the parts of a `ServiceError` that the front receives.

    Attributes:
        reason: A reason of `qwenvl.errors`.
        message: The message for the caller, never the text of a parser.
        metadata: The values in the message, machine-readable.
        retry_after_s: Seconds after which a retry may succeed, if any.
    """

    reason: str
    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: ServiceError) -> EngineFailure:
        """The failure for an error; its field is left out, as the engine does not know the proto's fields."""
        return cls(
            reason=error.reason,
            message=error.message,
            metadata=error.metadata,
            retry_after_s=error.retry_after_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOutput:
    """The output of one engine step for one choice of a request.

    Attributes:
        request_id: The request.
        choice_index: Which of its choices.
        token_ids: New tokens, in order; an end token is included.
        logprobs: One entry for every new token, if requested.
        prompt_logprobs: Entries for further prompt tokens, if requested; they begin at the second token
            of the prompt and are complete before the first new token.
        num_cached_tokens: Prompt tokens found in the prefix cache; set on the choice's first output only.
        num_cache_write_tokens: Prompt tokens that this choice added to the prefix cache; told with `timings`, as the
            prompt is computed then.
        timings: Set on the output with the choice's first token, or with the result of its probe.
        probe: The result of a probe; set on its only output, which finishes it as LENGTH.
        finish_reason: Set on the choice's last output.
        failure: Set when `finish_reason` is ERROR.
    """

    request_id: str
    choice_index: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[PositionLogprobs, ...] = ()
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()
    num_cached_tokens: int | None = None
    num_cache_write_tokens: int = 0
    timings: ChoiceTimings | None = None
    probe: ProbeResult | None = None
    finish_reason: FinishReason | None = None
    failure: EngineFailure | None = None

    @classmethod
    def aborted(cls, request_id: str, choice_index: int) -> ChoiceOutput:
        """The last output of an aborted choice."""
        return cls(
            request_id=request_id, choice_index=choice_index, finish_reason=FinishReason.ABORTED
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Counters of the engine; sums count from its start, `device_memory` is None without a GPU."""

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
    steps: int = 0
    step_durations: Histogram = field(default_factory=Histogram)
    encode_durations: Histogram = field(default_factory=Histogram)
    batch_sizes: Histogram = field(default_factory=Histogram)
    device_memory: DeviceMemory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The configuration of the engine process.

    Attributes:
        model_dir: Directory with config.json and safetensors.
        dtype: `auto`, `float32`, `float16` or `bfloat16`; auto = the checkpoint's on a GPU; on a CPU
            bfloat16 if the checkpoint has it and it is measured to be faster, else float32.
        device: `auto`, `cpu`, `cuda`, `cuda:N`, or several GPUs for a model too large for one: `cuda:0,cuda:1`.
        quantization: `none`, or `int8` for the large weights of the language model on a CPU.
        gpu_kernels: `auto` = the kernels that equal their torch references on the GPU; `off` = the references only.
        cuda_graphs: `auto` = decode steps on a GPU are captured where they then give the same results; `off` = none is.
        pipeline_depth: 0, or 1 = a step is launched before the results of the one before it are read; None = 1 on a
            GPU, 0 on a CPU.
        max_model_len: Context window in tokens; None = the model's own.
        max_num_seqs: Maximum number of sequences in one batch.
        max_num_batched_tokens: Token budget of one step (chunked prefill).
        max_decode_slowdown: How many times longer than answers alone a step with prompts or images beside them may
            take.
        page_size: Tokens of one KV page.
        num_kv_pages: Pages of the KV cache; None = computed from the available memory.
        gpu_memory_utilization: Fraction of the device's memory for weights and caches.
        cpu_kv_cache_bytes: Size of the KV cache on a CPU.
        encoder_cache_tokens: Image tokens kept in the encoder cache.
        enable_prefix_caching: Reuse pages of equal prefixes.
        cpu_threads: torch threads on a CPU; None = one for each core, within the quota of the container.
        log_level: The lowest level that the process logs.
        log_format: `json` or `text`; None = text on a terminal, JSON otherwise.
    """

    model_dir: str
    dtype: str = "auto"
    device: str = "auto"
    quantization: str = "none"
    gpu_kernels: str = "auto"
    cuda_graphs: str = "auto"
    pipeline_depth: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_decode_slowdown: float = 2.0
    page_size: int = 16
    num_kv_pages: int | None = None
    gpu_memory_utilization: float = 0.9
    cpu_kv_cache_bytes: int = 256 * 2**20
    encoder_cache_tokens: int = 16384
    enable_prefix_caching: bool = True
    cpu_threads: int | None = None
    log_level: LogLevel = "info"
    log_format: LogFormat | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReady:
    """The loaded engine, ready for requests.

    Attributes:
        device: The device in use: `cpu`, `cuda:0`, or several separated by commas.
        dtype: Dtype of weights and cache: `float32`, `float16`, `bfloat16`.
        max_model_len: Context window in tokens, limited by the size of the cache.
        kv_pages_total: Pages of the KV cache.
        kv_page_tokens: Tokens of one page.
        kv_bytes_per_token: Cache bytes of one token.
        weight_bytes: Bytes of the weights as loaded.
        parts: (name, parameter count) of vision, adapter, language.
        load_seconds: Time to load, in seconds.
        slow_path: Why computation is slower than possible on this hardware; empty = it is not.
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
