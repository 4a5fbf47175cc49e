"""Rotary embeddings of the demo network."""

from __future__ import annotations

import torch


Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines."""


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotary embedding of [..., T, D] by cosines and sines that broadcast to it; halves are pairs."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin
