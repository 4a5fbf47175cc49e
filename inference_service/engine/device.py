"""The device of an engine: its memory, and how far it has come within a step."""

from __future__ import annotations

import torch

from inference_service.measures import DeviceMemory
from inference_service.progress import advance


def note_progress(model: torch.nn.Module) -> None:
    """Lets every layer note that it has been computed."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in (layer for layers in lists for layer in layers):
        layer.register_forward_hook(advance)


def memory_of(device: torch.device) -> DeviceMemory | None:
    """The memory of a GPU; None for a CPU."""
    if device.type != "cuda":
        return None
    return DeviceMemory(
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        total=torch.cuda.get_device_properties(device).total_memory,
    )
