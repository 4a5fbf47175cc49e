"""A short text that a model computes before it is served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
import transformers

from inference_service.transformers_engine.generation import Generation, ModuleState


def state_bytes(model: Any, token_id: int) -> int:
    """Computes a prompt of two tokens and one token of an answer, and weighs the cache after both.

    Shows that the installed library computes the model by the interfaces that this process uses, some of which are its
    private ones.

    Args:
        model: The model.
        token_id: A token of its text.

    Returns:
        Bytes that a sequence needs whatever its length: the states of linear layers.

    Raises:
        ValueError: The library fails; the message is for the operator.
    """
    ids = torch.full((1, 2), token_id)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generation = Generation(model, ModuleState(model), inputs, max_length=4, all_logits=False)
    try:
        generation.logits(None)
        of_two = _bytes_of(generation.cache)
        generation.logits(token_id)
    except Exception as error:
        raise ValueError(
            f"transformers {transformers.__version__} does not compute {type(model).__name__} in the way of this"
            f" service ({type(error).__name__}: {error})"
        ) from error
    of_one = _bytes_of(generation.cache) - of_two
    return max(0, of_two - 2 * of_one)


def _bytes_of(cache: Any) -> int:
    """Bytes of the tensors of all layers of a cache; of shared memory once."""
    layers = getattr(cache, "layers", ())
    tensors = [tensor for layer in layers for tensor in _tensors(vars(layer).values())]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
        elif isinstance(value, dict):
            found += _tensors(value.values())
    return found
