"""Loads the weights of a checkpoint, which must have exactly the tensors that its family lists."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
import logging
import math
from pathlib import Path
import time

import torch

from inference_service.families.family import TensorEntry
from inference_service.families.placement import Placement
from inference_service.families.qwen_common.config import QwenVisionSpec
from inference_service.families.registry import family_of, load_spec
from inference_service.families.tables import tensor_table
from inference_service.kernels.check_inputs import Sizes
from inference_service.kernels.ops import REFERENCE, Ops, choose_ops
from inference_service.model_spec import DTYPE_BYTES, ModelSpec
from inference_service.models.checkpoint import LoadError, StoredTensor, open_checkpoint
from inference_service.models.vision_language import VisionLanguageModel


__all__ = ["LoadError", "load_model"]

_PROGRESS_S = 5.0
_RECOMPUTED = ".inv_freq"  # rotary frequencies, which some savers store
_QUANTISED = "quantised weights are not supported, serve the model from which they were made"
_FORMS: Mapping[str, str] = {
    ".lora_": "LoRA matrices are not merged, merge them first (PeftModel.merge_and_unload)",
    ".qweight": _QUANTISED,
    ".weight_packed": _QUANTISED,
    ".weight_scale": _QUANTISED,
    ".absmax": _QUANTISED,
}
"""What tensors with such names show."""

logger = logging.getLogger(__name__)


def load_model(
    model_dir: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    placement: Placement | None = None,
    gpu_kernels: str = "auto",
) -> VisionLanguageModel:
    """Loads a model.

    Args:
        model_dir: Directory with config.json and weights.
        dtype: Dtype to which weights are converted.
        device: Device of the weights.
        placement: Devices of the layers instead; None = all on `device`.
        gpu_kernels: `auto`, or `off` for the torch references.

    Raises:
        SpecError: The configuration is not supported.
        LoadError: A tensor is missing, unexpected, of the wrong shape, or stored in an unsupported dtype.
    """
    spec = load_spec(model_dir)
    with ExitStack() as stack:
        stored = open_checkpoint(model_dir, stack, family_of(spec).current_name)
        spec = _settle_head(spec, stored)
        _check(spec, stored)
        devices = [torch.device(name) for name in placement.devices] if placement else [device]
        ops = ops_for(spec, devices, dtype, gpu_kernels)
        with torch.device("meta"):
            model = VisionLanguageModel(spec, ops)
        model = model.to(dtype)
        model.allocate(device, placement)
        model = model.requires_grad_(requires_grad=False).eval()
        with torch.inference_mode():
            _fill(model, stored)
    return model


def ops_for(
    spec: ModelSpec, devices: Sequence[torch.device], dtype: torch.dtype, gpu_kernels: str
) -> Ops:
    """The operations of a model; the references with `off`, or with layers on several kinds of devices."""
    if gpu_kernels == "off" or len({device.type for device in devices}) > 1:
        return REFERENCE
    decoder, vision = spec.decoder, spec.vision
    sizes = Sizes(
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        vocab_size=decoder.vocab_size,
        rotated=decoder.rope.dim,
        adjacent_pairs=decoder.rope.adjacent_pairs,
        qk_norm=decoder.qk_norm,
        scaled_queries=decoder.logn_length is not None,
    )
    if isinstance(vision, QwenVisionSpec):  # the other towers do not pack images
        sizes = replace(sizes, vision_heads=(vision.num_heads, vision.head_dim))
    return choose_ops(devices, dtype, sizes=sizes)


def _settle_head(spec: ModelSpec, stored: dict[str, StoredTensor]) -> ModelSpec:
    """The specification, tied or not as the tensors are; transformers decides likewise.

    Fine-tuning may train the head of a tied model and leave the flag: a head that differs from the embedding is kept.
    If only the head of a tied model is stored, it is the embedding.
    """
    if not spec.decoder.tie_word_embeddings:
        return spec
    untied = replace(spec, decoder=replace(spec.decoder, tie_word_embeddings=False))
    head, embedding = (_name_of(untied, part) for part in ("lm_head", "embed_tokens"))
    if head not in stored:
        return spec
    if embedding not in stored or _equal(stored[head], stored[embedding]):
        stored[embedding] = stored.pop(head)
        return spec
    return untied


def _name_of(spec: ModelSpec, part: str) -> str:
    """The name in the checkpoint of the weight of a part of the decoder; empty if it has no such weight."""
    wanted = f"decoder.{part}.weight"
    return next((entry.name for entry in tensor_table(spec) if entry.parameter == wanted), "")


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one.read(), other.read())


def _check(spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> None:
    """Checks names, shapes and dtypes, from the headers only."""
    expected = {entry.name: entry.shape for entry in tensor_table(spec)}
    unexpected = {
        name
        for name in stored.keys() - expected.keys() - family_of(spec).rebuilt
        if not name.endswith(_RECOMPUTED)
    }
    for suffix, what in _FORMS.items():
        if found := next((name for name in sorted(unexpected) if suffix in name), None):
            raise LoadError(f"{what}: the checkpoint has {found}")
    for what, names in (("missing", expected.keys() - stored.keys()), ("unexpected", unexpected)):
        if names:
            some = ", ".join(sorted(names)[:5])
            hint = "; if it is the token embedding, set tie_word_embeddings to true in config.json"
            is_head = what == "missing" and set(names) == {_name_of(spec, "lm_head")}
            raise LoadError(
                f"{len(names)} {what} tensors in the checkpoint: {some}{hint if is_head else ''}"
            )
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise LoadError(f"{name} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype not in DTYPE_BYTES:
            raise LoadError(f"{name} is stored as {tensor.dtype}, which is not supported")


def _fill(model: VisionLanguageModel, stored: Mapping[str, StoredTensor]) -> None:
    parameters = dict(model.named_parameters())
    unfilled = {name: parameter.shape[0] for name, parameter in parameters.items()}
    for entry in _told(tensor_table(model.spec), stored):
        parameter = parameters[entry.parameter]
        tensor = stored[entry.name].read()
        rows = tensor.shape[0]
        parameter[entry.row : entry.row + rows].copy_(tensor.reshape(rows, *parameter.shape[1:]))
        unfilled[entry.parameter] -= rows
    left = [name for name, rows in unfilled.items() if rows]
    if left:
        raise AssertionError(f"the tensor table leaves parameters unset: {left}")


def _told(
    table: Sequence[TensorEntry], stored: Mapping[str, StoredTensor]
) -> Iterator[TensorEntry]:
    """The entries of a table, whose loading is logged every few seconds, with the size read so far."""
    sizes = {
        entry.name: math.prod(stored[entry.name].shape) * DTYPE_BYTES[stored[entry.name].dtype]
        for entry in table
    }
    whole, done, next_time = sum(sizes.values()), 0, time.monotonic()
    for entry in table:
        if time.monotonic() >= next_time:
            next_time = time.monotonic() + _PROGRESS_S
            logger.info(
                "loading weights: %d %%, %.2f of %.2f GiB",
                100 * done // max(1, whole),
                done / 2**30,
                whole / 2**30,
            )
        yield entry
        done += sizes[entry.name]
