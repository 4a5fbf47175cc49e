"""Brings the pixels of images to the device, and keeps what is computed of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def send_pixels(pixels: memoryview, height: int, width: int, device: torch.device) -> Tensor:
    """Pixels as bytes on the device, where they are normalised: [frames, height, width, 3] uint8.

    Copied, as the buffer may be read-only and shared. To a GPU they go through pinned memory, and nothing waits
    for the copy: the allocator of pinned memory gives it to others once the copy is complete.

    Args:
        pixels: RGB of all frames.
        height: Of a frame.
        width: Of a frame.
        device: The device.
    """
    on_gpu = device.type == "cuda"
    host = torch.empty(len(pixels), dtype=torch.uint8, pin_memory=on_gpu)
    host.numpy()[:] = np.frombuffer(pixels, np.uint8)
    sent = host.to(device, non_blocking=True) if on_gpu else host
    return sent.view(-1, height, width, 3)


def own(embedding: Tensor) -> Tensor:
    """The same values in memory that holds nothing else: a view would keep that of other images."""
    alone = embedding.untyped_storage().nbytes() == embedding.nbytes
    return embedding if alone else embedding.clone()
