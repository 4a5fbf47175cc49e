"""Names and shapes of the tensors that Qwen2-VL and its successors share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from inference_service.families.family import TensorEntry
from inference_service.families.qwen_common.config import QwenVisionSpec
from inference_service.families.weight_files import StoredHeader, stored_headers
from inference_service.model_spec import DecoderSpec


HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"

_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.")
"""Prefixes of training libraries: data parallel, torch.compile, and PEFT."""
_PREFIXES = (
    ("model.language_model.lm_head.", "lm_head."),
    ("model.lm_head.", "lm_head."),
    ("language_model.lm_head.", "lm_head."),
    ("model.visual.", "model.visual."),
    ("model.language_model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
)
"""(stored, current) beginnings of names; the first that matches applies."""


def current_name(name: str) -> str:
    """The current name of a tensor in a checkpoint as published, or as older versions and other libraries wrote it."""
    while wrapper := next((prefix for prefix in _WRAPPERS if name.startswith(prefix)), None):
        name = name.removeprefix(wrapper)
    for stored, current in _PREFIXES:
        if name.startswith(stored):
            return current + name.removeprefix(stored)
    return name


def stored_tensors(model_dir: Path) -> dict[str, StoredHeader] | None:
    """The tensors of a directory by their current names; None = unknown, see `stored_headers`."""
    stored = stored_headers(model_dir)
    return None if stored is None else {current_name(name): one for name, one in stored.items()}


def vision_entry(
    name: str,
    shape: tuple[int, ...],
    part: str = "vision",
    *,
    ours: str | None = None,
    row: int = 0,
) -> TensorEntry:
    """A tensor of the vision tower; `ours` is the model's parameter, if named differently."""
    return TensorEntry(f"model.visual.{name}", shape, f"visual.{ours or name}", part, row)


def with_bias(
    name: str,
    shape: tuple[int, ...],
    part: str = "vision",
    *,
    ours: str | None = None,
    row: int = 0,
) -> Iterator[TensorEntry]:
    """A weight of the vision tower and its bias of `shape[0]` values."""
    weight = vision_entry(f"{name}.weight", shape, part, ours=f"{ours or name}.weight", row=row)
    yield from weight.with_bias()


def patch_embed_entry(vision: QwenVisionSpec) -> TensorEntry:
    """The convolution that embeds patches."""
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    return vision_entry("patch_embed.proj.weight", (vision.hidden_size, *patch))


def merger_entries(vision: QwenVisionSpec) -> Iterator[TensorEntry]:
    """The linear maps of the merger in Qwen2-VL and Qwen2.5-VL."""
    merged = vision.merged_size
    yield from with_bias("merger.mlp.0", (merged, merged), "adapter", ours="merger.fc1")
    yield from with_bias("merger.mlp.2", (vision.output_size, merged), "adapter", ours="merger.fc2")


def language_entries(decoder: DecoderSpec) -> Iterator[TensorEntry]:
    """The tensors of the language model, under their current names."""
    hidden = decoder.hidden_size
    embedding = (decoder.vocab_size, hidden)
    yield TensorEntry(
        EMBEDDING,
        embedding,
        "decoder.embed_tokens.weight",
        "language",
    )
    for i in range(decoder.num_layers):
        yield from _layer_entries(
            decoder, f"model.language_model.layers.{i}", f"decoder.layers.{i}"
        )
    norm = "model.language_model.norm.weight"
    yield TensorEntry(norm, (hidden,), "decoder.norm.weight", "language")
    if not decoder.tie_word_embeddings:
        yield TensorEntry(HEAD, embedding, "decoder.lm_head.weight", "language")


def _layer_entries(decoder: DecoderSpec, theirs: str, ours: str) -> Iterator[TensorEntry]:
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    q = decoder.num_heads * decoder.head_dim
    kv = decoder.num_kv_heads * decoder.head_dim

    def place(
        name: str, shape: tuple[int, ...], ours_name: str | None = None, row: int = 0
    ) -> TensorEntry:
        return TensorEntry(
            f"{theirs}.{name}", shape, f"{ours}.{ours_name or name}", "language", row
        )

    for name, rows, row in (("q", q, 0), ("k", kv, q), ("v", kv, q + kv)):
        fused = "self_attn.qkv_proj"
        yield place(f"self_attn.{name}_proj.weight", (rows, hidden), f"{fused}.weight", row)
        if decoder.qkv_bias:
            yield place(f"self_attn.{name}_proj.bias", (rows,), f"{fused}.bias", row)
    if decoder.qk_norm:
        yield place("self_attn.q_norm.weight", (decoder.head_dim,))
        yield place("self_attn.k_norm.weight", (decoder.head_dim,))
    yield place("self_attn.o_proj.weight", (hidden, q))
    if decoder.output_bias:
        yield place("self_attn.o_proj.bias", (hidden,))
    yield place("input_layernorm.weight", (hidden,))
    yield place("post_attention_layernorm.weight", (hidden,))
    yield place("mlp.gate_proj.weight", (inner, hidden), "mlp.gate_up_proj.weight", 0)
    yield place("mlp.up_proj.weight", (inner, hidden), "mlp.gate_up_proj.weight", inner)
    yield place("mlp.down_proj.weight", (hidden, inner))
