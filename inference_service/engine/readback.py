"""Reads results of the device without waiting for the work that is queued behind them."""

from __future__ import annotations

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """Queues a copy to the host; its content is valid once a fence that is recorded later has been passed.

    Reading a tensor on a GPU directly would wait for the next step too, if that is queued already.
    """
    if tensor.device.type != "cuda":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
