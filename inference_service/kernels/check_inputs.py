"""Small inputs for kernels, with the sizes of a model's decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from typing import Any, Final

import torch
from torch import Tensor

from inference_service.kernels.attention import new_kv_cache


PAGE_SIZE: Final = 16
Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and kind of a decoder, for which kernels are compiled.

    Attributes:
        num_heads: As of `model_spec.DecoderSpec`, like the next five.
        num_kv_heads: See there.
        head_dim: See there.
        hidden_size: See there.
        intermediate_size: See there.
        vocab_size: See there.
        rotated: Elements of a head that are rotated.
        adjacent_pairs: As of `model_spec.RopeSpec`.
        qk_norm: As of `model_spec.DecoderSpec`.
        scaled_queries: Rotated queries are scaled.
        vision_heads: Number and width of the heads of the vision tower.
    """

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    hidden_size: int = 96
    intermediate_size: int = 160
    vocab_size: int = 5000
    rotated: int = 64
    adjacent_pairs: bool = False
    qk_norm: bool = True
    scaled_queries: bool = True
    vision_heads: tuple[int, int] = (2, 40)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs for a kernel, the same ones for the same arguments."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype

    def noise(self, *shape: int) -> Tensor:
        """Normal values."""
        generator = torch.Generator().manual_seed(math.prod(shape))
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def heads(self, tokens: int) -> Sequence[Tensor]:
        """Queries, keys and values of new tokens, parts of one tensor as in a model."""
        split = (self.sizes.num_heads, self.sizes.num_kv_heads, self.sizes.num_kv_heads)
        return self.noise(tokens, sum(split), self.sizes.head_dim).split_with_sizes(split, dim=1)

    def caches(self, pages: int, value: float) -> Tensor:
        """Keys and values of one layer, filled with a value."""
        shape = (1, pages, PAGE_SIZE, self.sizes.num_kv_heads, self.sizes.head_dim)
        return new_kv_cache(*shape, dtype=self.dtype, device=self.device)[0].fill_(value)
