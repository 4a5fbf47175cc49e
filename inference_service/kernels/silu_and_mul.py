"""The gate of a SwiGLU MLP (arXiv 2002.05202): the torch reference."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """[..., 2n], gate then up -> [..., n]: silu(gate) * up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate).mul_(up)
