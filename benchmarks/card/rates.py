"""What the card can do: every later figure is a share of these rates, which differ from card to card."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.card.setting import Setting


def measure(setting: Setting) -> dict[str, Any]:
    """Bytes per second of a copy (read and written) and of a read, and FLOP per second of a matrix product."""
    num_bytes = 2**24 if setting.tiny else 2**32
    side = 256 if setting.tiny else 8192
    source = torch.zeros(num_bytes // 4, dtype=torch.float32, device=setting.device)
    target = torch.empty_like(source)
    # A sum by rows reads everything and writes next to nothing.
    rows = source.view(-1, 4096)
    a, b = (torch.randn(side, side, device=setting.device, dtype=setting.dtype) for _ in range(2))
    return {
        "copy_bytes_per_s": 2 * num_bytes / setting.seconds(lambda: target.copy_(source)),
        "read_bytes_per_s": num_bytes / setting.seconds(lambda: rows.sum(dim=1)),
        "matmul_flop_per_s": 2 * side**3 / setting.seconds(lambda: a @ b),
        "matmul_dtype": str(setting.dtype),
    }
