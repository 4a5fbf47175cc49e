"""Sizes of a model of the library: its parts, its context window, its cache."""

from __future__ import annotations

from typing import Any

from inference_service.model_spec import DTYPE_BYTES


_WITHOUT_KEYS = frozenset({"linear_attention", "conv", "moe"})
"""Layers that keep a state, or nothing, instead of keys and values."""
_DEFAULT_WINDOW = 4096
"""For models that do not tell theirs."""


def text_config(config: Any) -> Any:
    """The settings of the language model."""
    return config.get_text_config(decoder=True)


def context_tokens(config: Any) -> int:
    """The context window in tokens."""
    text = text_config(config)
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    found = (getattr(text, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), _DEFAULT_WINDOW)


def kv_values_per_token(config: Any) -> int:
    """Maximum values in the cache for one token: layers with attention keep keys and values of all tokens.

    Layers with a window or compressed keys need less. What layers with a state need for a sequence is not counted.
    """
    text = text_config(config)
    heads = int(text.num_attention_heads)
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    key_heads = max(key_heads) if isinstance(key_heads, list | tuple) else int(key_heads)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kinds = getattr(text, "layer_types", None) or ()
    layers = int(text.num_hidden_layers) - sum(kind in _WITHOUT_KEYS for kind in kinds)
    return 2 * max(1, layers) * key_heads * int(head_dim)


def activation_bytes_per_token(config: Any, value_bytes: int) -> int:
    """Estimate of what one layer needs for each token of a prompt, which the library computes in one piece.

    The inputs and outputs of its norms, projections and products, as if all were held at once. Not counted: masks and
    weights of attention, which a fused kernel does not make.

    Args:
        config: The model's settings.
        value_bytes: Bytes of a value of the activations.
    """
    text = text_config(config)
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    inner = _number(text, "intermediate_size")
    experts = _number(text, "num_experts_per_tok") * _number(text, "moe_intermediate_size")
    values = 4 * hidden + 9 * heads * int(head_dim) + 3 * max(inner, experts)
    linear = _number(text, "linear_num_value_heads") * (
        2 * _number(text, "linear_key_head_dim") + _number(text, "linear_value_head_dim")
    )
    in_float32 = 2 * hidden + 4 * linear
    return values * value_bytes + in_float32 * 4


def _number(settings: Any, name: str) -> int:
    value = getattr(settings, name, None)
    return value if isinstance(value, int) else max(value) if isinstance(value, list) else 0


def limits(
    room: int, wanted: int, token_bytes: int, activation_bytes: int, state_tokens: int = 0
) -> tuple[int, int]:
    """How long a sequence may be, and how many tokens all caches together may hold.

    Args:
        room: Bytes for caches, and for the activations of the longest prompt.
        wanted: Maximum tokens of a sequence, if there is room.
        token_bytes: Bytes of one token in the cache.
        activation_bytes: Bytes of the activations for each token of a prompt.
        state_tokens: Tokens for which a sequence needs room beside its own.
    """
    room = max(0, room)
    longest = max(0, room - state_tokens * token_bytes) // (token_bytes + activation_bytes)
    longest = min(wanted, longest)
    return longest, (room - longest * activation_bytes) // token_bytes


def count_parts(model: Any) -> tuple[tuple[str, int], ...]:
    """(name, parameter count) of the vision tower, the adapter and the language model; shared tensors count once."""
    counts = {"vision": 0, "adapter": 0, "language": 0}
    for name, parameter in model.named_parameters():
        counts[_part_of(name)] += parameter.numel()
    return tuple(counts.items())


def _part_of(name: str) -> str:
    words = name.removeprefix("model.").split(".")
    if any(
        mark in word for word in words[:2] for mark in ("project", "merger", "connector", "adapter")
    ):
        return "adapter"
    if any(word.startswith(("vis", "image")) for word in words[:2]):
        return "vision"
    return "language"


def checkpoint_dtype(config: Any) -> str:
    """Dtype of the stored weights; float32 if it is not told or not one of ours."""
    for settings in (config, text_config(config)):
        name = str(getattr(settings, "dtype", None)).removeprefix("torch.")
        if name in DTYPE_BYTES:
            return name
    return "float32"


def end_tokens(generation: Any, config: Any) -> tuple[int, ...]:
    """Tokens that end an answer.

    Raises:
        ValueError: The model has none.
    """
    for source in (generation, config, text_config(config)):
        value = getattr(source, "eos_token_id", None)
        ids = value if isinstance(value, list | tuple) else [value]
        if found := tuple(i for i in ids if isinstance(i, int) and i >= 0):
            return found
    raise ValueError("neither generation_config.json nor config.json has eos_token_id")
