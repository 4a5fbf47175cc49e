"""The device of an engine: its memory, and how far it has come within a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch

from inference_service.measures import DeviceMemory
from inference_service.progress import advance


_LONG: Final = 256
"""Tokens from which on a layer takes so long that it is worth while to wait for it."""


def note_progress(model: torch.nn.Module, wait: Callable[[], None] = lambda: None) -> None:
    """Lets every layer note that it has been computed.

    Args:
        model: The model.
        wait: Waits for what a device has still to compute, if it computes beside this process; called after layers
            with many tokens only.
    """
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in (layer for layers in lists for layer in layers):
        layer.register_forward_hook(partial(_note, wait))


def _note(wait: Callable[[], None], module: torch.nn.Module, inputs: Any, output: Any) -> None:
    del module, output
    first = inputs[0] if inputs else None
    if not isinstance(first, torch.Tensor) or first.numel() >= _LONG * first.shape[-1]:
        wait()
    advance()


def memory_of(device: torch.device) -> DeviceMemory | None:
    """The memory of a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    return DeviceMemory(
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        total=torch.cuda.get_device_properties(device).total_memory,
    )
