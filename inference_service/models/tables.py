"""The tensors of a checkpoint: their names and shapes, and where each goes in our modules.

Owns the name tables and what follows from them by arithmetic: parameter counts and cache sizes. Torch-free, so
that the front can read it. Must not know tensors or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from inference_service.models.spec import DecoderSpec, ModelSpec, VisionSpec


LM_HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint.

    Attributes:
        name: In the checkpoint.
        shape: In the checkpoint.
        parameter: Our parameter that holds it.
        row: First row of it there: projections that share an input are fused, one below the other.
        part: `vision`, `adapter` or `language`.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    part: str
    row: int = 0


def tensor_table(spec: ModelSpec) -> tuple[TensorEntry, ...]:
    """Every tensor that a checkpoint of this model must have."""
    return (*_vision_entries(spec.vision), *_language_entries(spec.decoder))


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this model must have, by its name there."""
    return {entry.name: entry.shape for entry in tensor_table(spec)}


def module_parts(spec: ModelSpec) -> tuple[tuple[str, int], ...]:
    """(name, parameter count) of the vision tower, the adapter and the language model."""
    counts = {"vision": 0, "adapter": 0, "language": 0}
    for entry in tensor_table(spec):
        counts[entry.part] += prod(entry.shape)
    return tuple(counts.items())


def kv_bytes_per_token(spec: ModelSpec, bytes_per_value: int) -> int:
    """Bytes of keys and values that one token takes in the cache."""
    decoder = spec.decoder
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * bytes_per_value


def _vision_entries(vision: VisionSpec) -> Iterator[TensorEntry]:
    width, inner, side = vision.hidden_size, vision.intermediate_size, vision.patch_size
    patch = (vision.in_channels, vision.temporal_patch_size, side, side)
    stem: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, *patch),
        "patch_embed.proj.bias": (width,),
        "pos_embed.weight": (vision.position_table_side**2, width),
    }
    block = {
        "norm1": (width,),
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "norm2": (width,),
        "mlp.linear_fc1": (inner, width),
        "mlp.linear_fc2": (width, inner),
    }
    for name, shape in stem.items():
        yield _same_name(name, shape, "vision")
    for i in range(vision.num_layers):
        for name, shape in block.items():
            yield from _with_bias(f"blocks.{i}.{name}", shape, "vision")
    yield from _merger_entries("merger", vision, norm_size=width)
    for i in range(len(vision.deepstack_layers)):
        yield from _merger_entries(
            f"deepstack_merger_list.{i}", vision, norm_size=vision.merged_size
        )


def _merger_entries(name: str, vision: VisionSpec, *, norm_size: int) -> Iterator[TensorEntry]:
    merged = vision.merged_size
    yield from _with_bias(f"{name}.norm", (norm_size,), "adapter")
    yield from _with_bias(f"{name}.linear_fc1", (merged, merged), "adapter")
    yield from _with_bias(f"{name}.linear_fc2", (vision.output_size, merged), "adapter")


def _with_bias(name: str, shape: tuple[int, ...], part: str) -> Iterator[TensorEntry]:
    yield _same_name(f"{name}.weight", shape, part)
    yield _same_name(f"{name}.bias", shape[:1], part)


def _same_name(name: str, shape: tuple[int, ...], part: str) -> TensorEntry:
    return TensorEntry(f"model.visual.{name}", shape, f"visual.{name}", part)


def _language_entries(decoder: DecoderSpec) -> Iterator[TensorEntry]:
    hidden = decoder.hidden_size
    embedding = (decoder.vocab_size, hidden)
    yield TensorEntry(EMBEDDING, embedding, "decoder.embed_tokens.weight", "language")
    for i in range(decoder.num_layers):
        yield from _layer_entries(
            decoder, f"model.language_model.layers.{i}", f"decoder.layers.{i}"
        )
    norm = "model.language_model.norm.weight"
    yield TensorEntry(norm, (hidden,), "decoder.norm.weight", "language")
    if not decoder.tie_word_embeddings:
        yield TensorEntry(LM_HEAD, embedding, "decoder.lm_head.weight", "language")


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
