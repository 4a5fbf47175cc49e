"""Reads the language model's settings of Qwen2-VL and its successors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from inference_service.families.config_file import Section, SpecError, check_key_heads
from inference_service.families.qwen_common.tensors import EMBEDDING, HEAD
from inference_service.families.weight_files import StoredHeader
from inference_service.model_spec import DecoderSpec, RopeSpec


QWEN2_TEXT: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 152064,
        "hidden_size": 8192,
        "intermediate_size": 29568,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 80,
        "rope_theta": 1_000_000.0,
        "eos_token_id": 151645,
    }
)
"""The defaults of Qwen2-VL and Qwen2.5-VL."""
QWEN2_SECTIONS = (16, 24, 24)
"""The default of `mrope_section` in Qwen2-VL and Qwen2.5-VL."""


def text_section(config: Section, defaults: Mapping[str, Any]) -> Section:
    """The language model's settings: in `text_config`, or (transformers 4, Qwen2) at top level."""
    section = config.section("text_config") if "text_config" in config else config
    return section.with_defaults(defaults)


def read_decoder(
    config: Section,
    text: Section,
    stored: Mapping[str, StoredHeader] | None,
    *,
    qkv_bias: bool,
    output_bias: bool,
    qk_norm: bool,
    rope: RopeSpec,
    deepstack_levels: int = 0,
) -> DecoderSpec:
    """Reads the language model's settings.

    Args:
        config: config.json.
        text: The language model's settings in it.
        stored: The tensors of the checkpoint by their current names; None = unknown.
        qkv_bias: See `DecoderSpec`, as the others, which the family fixes.
        output_bias: See `DecoderSpec`.
        qk_norm: See `DecoderSpec`.
        rope: From `read_rope`.
        deepstack_levels: See `DecoderSpec`.

    Raises:
        SpecError: A setting is missing, invalid or not supported.
    """
    text.expect("hidden_act", "silu")
    num_heads = text.integer("num_attention_heads")
    num_kv_heads = text.integer("num_key_value_heads", num_heads)
    check_key_heads(text, num_heads, num_kv_heads)
    return DecoderSpec(
        vocab_size=text.integer("vocab_size"),
        hidden_size=text.integer("hidden_size"),
        intermediate_size=text.integer("intermediate_size"),
        num_layers=text.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim(text),
        rms_norm_eps=text.number("rms_norm_eps"),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm=qk_norm,
        rope=rope,
        tie_word_embeddings=_is_tied(config, text, stored),
        deepstack_levels=deepstack_levels,
    )


def read_qwen2_decoder(
    config: Section, text: Section, stored: Mapping[str, StoredHeader] | None
) -> DecoderSpec:
    """The language model of Qwen2-VL and Qwen2.5-VL; arguments and errors as `read_decoder`."""
    _expect_full_attention(text)
    return read_decoder(
        config,
        text,
        stored,
        qkv_bias=True,
        output_bias=False,
        qk_norm=False,
        rope=read_rope(text, QWEN2_SECTIONS, interleaved=False),
    )


def head_dim(text: Section) -> int:
    """Width of an attention head."""
    width = text.integer("hidden_size") // text.integer("num_attention_heads")
    return text.integer("head_dim", max(1, width))


def read_rope(text: Section, sections: tuple[int, int, int], *, interleaved: bool) -> RopeSpec:
    """Reads the rotary positions in either spelling.

    transformers 5 writes `rope_parameters`, 4.x wrote `rope_scaling` and beside it `rope_theta`; `rope_scaling` takes
    precedence. The kind is `rope_type` or `type`, and "mrope" is the old name of the default.

    Args:
        text: The language model's settings.
        sections: The family's default of `mrope_section`.
        interleaved: See `RopeSpec`.

    Raises:
        SpecError: A setting is invalid or not supported.
    """
    key = "rope_scaling" if "rope_scaling" in text else "rope_parameters"
    rope = text.section(key, {})
    if "full_attention" in rope:  # transformers 5 permits settings for each type of layer
        rope = rope.section("full_attention")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in {"default", "mrope"}:
        raise SpecError(f"{rope.where}: rope_type {kind!r} is not supported")
    rope.expect("partial_rotary_factor", 1.0)
    width = head_dim(text)
    found = rope.integers("mrope_section") if "mrope_section" in rope else sections
    if len(found) != 3 or 2 * sum(found) != width:
        raise SpecError(
            f"{rope.where}: mrope_section must be three integers with the sum {width // 2}, not {list(found)}"
        )
    theta = rope.number("rope_theta") if "rope_theta" in rope else text.number("rope_theta")
    return RopeSpec(theta=theta, sections=(found[0], found[1], found[2]), interleaved=interleaved)


def _expect_full_attention(text: Section) -> None:
    """Raises for layers that see only a window of the context; settings of a window without such layers are harmless.

    Raises:
        SpecError: A layer has a window that is shorter than the context.
    """
    if not text.flag("use_sliding_window", default=False) or "sliding_window" not in text:
        return
    window, context = text.integer("sliding_window"), text.integer("max_position_embeddings")
    first = text.integer("max_window_layers", minimum=0)
    kinds = text.values.get("layer_types")
    limited = "sliding_attention" in kinds if kinds else first < text.integer("num_hidden_layers")
    if limited and window < context:
        raise SpecError(
            f"{text.where}: use_sliding_window is true from layer {first} (max_window_layers) with a window of {window}"
            " tokens (sliding_window); only attention to the whole context is supported"
        )


def _is_tied(config: Section, text: Section, stored: Mapping[str, StoredHeader] | None) -> bool:
    """Whether the output head is the token embedding: what the tensors show, else what either flag says.

    Versions of transformers differ in where they write the flag and whether they write it at all. A head that is stored
    although a flag says tied is compared when the weights are loaded.
    """
    flags = [
        section.flag("tie_word_embeddings", default=False)
        for section in (config, text)
        if "tie_word_embeddings" in section
    ]
    if stored is not None and EMBEDDING in stored and HEAD not in stored and not flags:
        return True
    return any(flags)
