"""Memory arithmetic for `GetModel`, `qwenvl check` and the engine. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inference_service.families.tables import kv_bytes_per_token, module_parts
from inference_service.model_spec import DTYPE_BYTES, ModelSpec


MIN_CONTEXT_TOKENS = 2048
"""Minimum context in tokens: with less, questions about images cannot be answered."""
PACKED_VALUES = 2**18
"""Minimum values of a weight that is packed on a CPU: the products with smaller ones are faster without."""
STEP_RESERVE_BYTES = 2**30
"""Estimate for the activations of one step where the engine cannot measure them, or has not yet."""
GRAPH_BYTES = 8 * 2**20
"""Estimate for what a driver keeps of one CUDA graph: hundreds of kernels with their arguments."""
GRAPH_POOL_SLACK_BYTES = 2 * 20 * 2**20
"""What torch's allocator may leave unused in a pool: parts of two of its blocks."""
SEARCHED_VALUES = 8192
"""Values of a row of logits in the table from which `top_k` and `top_p` select; see `kernels.gpu.filters`."""
MAX_KEY_SPLITS = 32
"""The most parts into which the attention of a decode step divides the keys of a sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """The memory that a model needs in one dtype.

    Attributes:
        family: Name of the family.
        parts: (name, parameter count) of the vision tower, the adapter and the language model.
        dtype: Dtype of weights and cache, a key of `DTYPE_BYTES`.
        kv_bytes_per_token: Bytes of the keys and values of one token.
        window_tokens: The context window that the model was trained for.
        copied_parameters: Parameters that are held twice: of an output head that is the token embedding, a CPU has
            both the rows and their packed form.
    """

    family: str
    parts: tuple[tuple[str, int], ...]
    dtype: str
    kv_bytes_per_token: int
    window_tokens: int
    copied_parameters: int = 0

    @property
    def parameter_count(self) -> int:
        """Number of parameters of all parts."""
        return sum(count for _, count in self.parts)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters in `dtype`, with those that are held twice."""
        return (self.parameter_count + self.copied_parameters) * DTYPE_BYTES[self.dtype]

    @property
    def copied_bytes(self) -> int:
        """Bytes of the parameters that are held twice, once."""
        return self.copied_parameters * DTYPE_BYTES[self.dtype]


class DecodeSizes(Protocol):
    """The settings that decide on the memory of decode steps; see `ServiceSettings`."""

    @property
    def max_model_len(self) -> int | None: ...  # noqa: D102
    @property
    def max_num_seqs(self) -> int: ...  # noqa: D102
    @property
    def max_num_batched_tokens(self) -> int: ...  # noqa: D102
    @property
    def kv_page_size(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The capacity of a KV cache.

    Attributes:
        cache_tokens: Tokens of all requests together.
        context_tokens: The longest request, prompt and answer together.
        full_requests: Number of concurrent requests of that length.
        fits: The cache holds one request of the length that the operator set, or else of `MIN_CONTEXT_TOKENS`.
    """

    cache_tokens: int
    context_tokens: int
    full_requests: int
    fits: bool


def footprint(spec: ModelSpec, dtype: str, *, on_gpu: bool = True) -> Footprint:
    """The footprint of a model.

    Args:
        spec: The model.
        dtype: A key of `DTYPE_BYTES`.
        on_gpu: The device is a GPU; a CPU may pack weights, and then holds a tied head twice.
    """
    decoder = spec.decoder
    head = decoder.vocab_size * decoder.hidden_size
    packs = not on_gpu and dtype != "float16" and head >= PACKED_VALUES
    return Footprint(
        family=spec.family,
        parts=module_parts(spec),
        dtype=dtype,
        kv_bytes_per_token=kv_bytes_per_token(spec, DTYPE_BYTES[dtype]),
        window_tokens=spec.max_position_embeddings,
        copied_parameters=head if packs and decoder.tie_word_embeddings else 0,
    )


def encoder_cache_bytes(spec: ModelSpec, num_tokens: int, bytes_per_value: int) -> int:
    """Bytes of an encoder cache for `num_tokens` image tokens with their deepstack features."""
    levels = 1 + spec.decoder.deepstack_levels
    return num_tokens * spec.decoder.hidden_size * levels * bytes_per_value


def largest_state_bytes(num_slots: int, max_pages: int, max_len: int, vocab_size: int) -> int:
    """Bytes of the state of the slots if every sequence has all penalties; see `engine.slots`."""
    slot = 8 + 4 * (max_pages + max_len + vocab_size)
    return num_slots * slot + 4 * vocab_size


def slots_bytes(
    spec: ModelSpec, num_slots: int, max_len: int, page_size: int, *, grows: bool
) -> int:
    """The same, with what is needed while it grows: the largest part is then copied from half the size."""
    max_pages = -(-max_len // page_size)
    state = largest_state_bytes(num_slots, max_pages, max_len, spec.decoder.vocab_size)
    return state + state // 2 if grows else state


def graph_sizes(most: int) -> tuple[int, ...]:
    """Numbers of rows for which decode steps are captured, in ascending order.

    They are 1, 2, 4, 8 and 16; then the distance is 8, and from 128 on an eighth of the power of two below, so that at
    most an eighth of a large step is padding.

    Args:
        most: The largest size.
    """
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += size if size < 8 else max(8, 1 << (size.bit_length() - 4))
    return (*sizes, most) if most > 0 else ()


def graph_bytes(
    spec: ModelSpec, sizes: Sequence[int], bytes_per_value: int, max_len: int, page_size: int
) -> int:
    """Bytes for the graphs of decode steps: an upper bound of their tensors, and an estimate of what the driver keeps.

    Args:
        spec: The model.
        sizes: Their numbers of rows, in ascending order.
        bytes_per_value: Of activations and cache.
        max_len: Maximum number of tokens of a sequence.
        page_size: Tokens of a page.
    """
    if not sizes:
        return 0
    decoder = spec.decoder
    head_dim, heads = decoder.head_dim, decoder.num_heads
    fused = (heads + 2 * decoder.num_kv_heads) * head_dim
    # As if nothing of a layer were freed before its end, nor the head's scores before the step's.
    activations = 6 * decoder.hidden_size + 4 * fused + 3 * decoder.intermediate_size
    partial_sums = heads * MAX_KEY_SPLITS * (head_dim + 2)
    row = (activations + decoder.vocab_size) * bytes_per_value
    # The logits, and those that are sampled.
    words = partial_sums + 4 * head_dim + 2 * decoder.vocab_size + -(-max_len // page_size)
    row += 4 * (words + SEARCHED_VALUES + decoder.vocab_size // 32) + 8 * 32
    padding = page_size * kv_bytes_per_token(spec, bytes_per_value)
    return sizes[-1] * row + padding + len(sizes) * GRAPH_BYTES + GRAPH_POOL_SLACK_BYTES


def decode_bytes(
    spec: ModelSpec, sizes: DecodeSizes, bytes_per_value: int, room: int, *, graphs: bool
) -> int:
    """Bytes that a GPU needs for decode steps beside activations: the state of the slots, and graphs.

    Both depend on the longest sequence, and without a limit that is what the KV cache holds of it.

    Args:
        spec: The model.
        sizes: What the operator has set.
        bytes_per_value: Of activations and cache.
        room: Bytes for this and the KV cache together.
        graphs: Whether decode steps are captured.
    """
    rows = graph_sizes(min(sizes.max_num_seqs, sizes.max_num_batched_tokens)) if graphs else ()
    slots, page_size = sizes.max_num_seqs + graphs, sizes.kv_page_size

    def needed(max_len: int) -> int:
        held = slots_bytes(spec, slots, max_len, page_size, grows=not graphs)
        return held + graph_bytes(spec, rows, bytes_per_value, max_len, page_size)

    if sizes.max_model_len is not None:
        return needed(sizes.max_model_len)
    window, token_bytes = spec.max_position_embeddings, kv_bytes_per_token(spec, bytes_per_value)
    longest = window
    # A token takes hundreds of times less here than in the cache: every round is that much closer.
    for _ in range(4):
        longest = max(0, min(window, (room - needed(longest)) // token_bytes))
    return needed(longest)


def usable_bytes(total: int, used: int, share: float) -> int:
    """Bytes left of the permitted fraction of a device; negative if more than that is in use."""
    return int(total * share) - used


def largest_media_tokens(
    spec: ModelSpec, max_num_batched_tokens: int, encoder_cache_tokens: int
) -> int:
    """Maximum image tokens that one step encodes; a video that is not split counts as one image."""
    if spec.video is not None and not spec.video.timestamps:
        return encoder_cache_tokens
    policy = spec.image_policy
    largest_image = policy.max_pixels // policy.pixel_step**2
    return min(max(max_num_batched_tokens, largest_image), encoder_cache_tokens)


def capacity(model: Footprint, cache_bytes: int, max_model_len: int | None) -> Capacity:
    """Computes the capacity of a cache.

    Args:
        model: The model.
        cache_bytes: Memory of the cache; negative if not even the weights fit.
        max_model_len: The operator's maximum length of a request, at most `model.window_tokens`; None = as much of
            the window as the cache holds.
    """
    tokens = max(0, cache_bytes // model.kv_bytes_per_token)
    wanted = max_model_len or model.window_tokens
    context = min(wanted, tokens)
    return Capacity(
        cache_tokens=tokens,
        context_tokens=context,
        full_requests=tokens // context if context else 0,
        fits=tokens >= (max_model_len or min(wanted, MIN_CONTEXT_TOKENS)),
    )
