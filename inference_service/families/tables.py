"""The tensors of a checkpoint, parameter counts, and bytes in the KV cache. Torch-free."""

from __future__ import annotations

from math import prod

from inference_service.families.family import TensorEntry
from inference_service.families.registry import family_of
from inference_service.model_spec import ModelSpec


def tensor_table(spec: ModelSpec) -> tuple[TensorEntry, ...]:
    """Every tensor that a checkpoint of this model must have."""
    return tuple(family_of(spec).tensors(spec))


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this model must have, by name."""
    return {entry.name: entry.shape for entry in tensor_table(spec)}


def module_parts(spec: ModelSpec) -> tuple[tuple[str, int], ...]:
    """(name, parameter count) of the vision tower, the adapter and the language model."""
    counts = {"vision": 0, "adapter": 0, "language": 0}
    for entry in tensor_table(spec):
        counts[entry.part] += prod(entry.shape)
    return tuple(counts.items())


def layer_parameters(spec: ModelSpec) -> int:
    """Number of parameters of one decoder layer; the same for all layers."""
    entries = tensor_table(spec)
    first = (e for e in entries if e.parameter.startswith("decoder.layers.0."))
    return sum(prod(entry.shape) for entry in first)


def kv_bytes_per_token(spec: ModelSpec, bytes_per_value: int) -> int:
    """Bytes of keys and values that one token takes in the cache."""
    decoder = spec.decoder
    return 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim * bytes_per_value
