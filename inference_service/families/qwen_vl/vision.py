"""The vision tower and resampler of Qwen-VL (2023): encode a square of patches into image tokens.

Source: visual.py of the release (arXiv 2308.12966).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import math
from typing import cast

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention

from inference_service.families.qwen_vl.spec import QwenVLVisionSpec
from inference_service.kernels import pieces
from inference_service.kernels.layers import Linear, parameter
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.pieces import Pieces, TowerInPieces


NORM_EPS = 1e-6


def resized_positions(table: torch.Tensor, side: int) -> torch.Tensor:
    """Resizes a square table of positions [s * s, D] to [side * side, D], bicubic in float32."""
    own_side = math.isqrt(table.shape[0])
    if own_side == side:
        return table
    grid = table.float().view(1, own_side, own_side, -1).permute(0, 3, 1, 2)
    resized = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return resized.flatten(2).squeeze(0).T.to(table.dtype)


class VisionAttention(nn.Module):
    """The projections of self-attention; unlike in other towers, those of a head are side by side."""

    def __init__(self, vision: QwenVLVisionSpec) -> None:
        super().__init__()
        self._heads = vision.num_heads
        self.in_proj = Linear(vision.width, 3 * vision.width)
        self.out_proj = Linear(vision.width, vision.width)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values [n, heads, D] of rows [n, width]."""
        q, k, v = self.in_proj(x).view(len(x), self._heads, 3, -1).unbind(2)
        return q, k, v


class VisionMLP(nn.Module):
    """Two linear maps with the exact GELU between them."""

    def __init__(self, vision: QwenVLVisionSpec) -> None:
        super().__init__()
        self.c_fc = Linear(vision.width, vision.intermediate_size)
        self.c_proj = Linear(vision.intermediate_size, vision.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] -> the same shape."""
        out: torch.Tensor = self.c_proj(gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each with a layer norm before it."""

    def __init__(self, vision: QwenVLVisionSpec) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(vision.width, eps=NORM_EPS)
        self.attn = VisionAttention(vision)
        self.ln_2 = nn.LayerNorm(vision.width, eps=NORM_EPS)
        self.mlp = VisionMLP(vision)

    def pieces(self, x: torch.Tensor, images: torch.Tensor) -> Pieces[torch.Tensor]:
        """[N, width] -> [N, width]; attention is limited to images, each a row of numbers [images, patches]."""

        def project(rows: slice) -> tuple[torch.Tensor, ...]:
            return self.attn.project(self.ln_1(x[rows]))

        def finish(rows: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
            y = x[rows] + self.attn.out_proj(attended)
            out: torch.Tensor = y + self.mlp(self.ln_2(y))
            return out

        return pieces.block(x, [images], project, finish)


class PackedProjections(nn.Module):
    """Projections of queries, keys and values in one tensor, each with a separate input.

    The parameters are plain tensors: a `Linear` in another weight form cannot be split into thirds.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = parameter(3 * size, size)
        self.bias = parameter(3 * size)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Three tensors [images, rows, size] -> three of the same shapes."""
        thirds = zip(inputs, self.weight.chunk(3), self.bias.chunk(3), strict=True)
        return [linear(*third) for third in thirds]


class CrossAttention(nn.Module):
    """Attention of learned queries to an image; parameters packed as in torch's MultiheadAttention."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.in_proj = PackedProjections(size)
        self.out_proj = Linear(size, size)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """From q [queries, size] and k, v [images, patches, size] to [images, queries, size]."""
        projected = self.in_proj(q.expand(k.shape[0], -1, -1), k, v)
        q, k, v = (x.view(*x.shape[:2], self._heads, -1).transpose(1, 2) for x in projected)
        attended = scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class Resampler(nn.Module):
    """Resamples any number of patches to a fixed number of tokens."""

    def __init__(self, vision: QwenVLVisionSpec) -> None:
        super().__init__()
        size = vision.output_size
        self._side = vision.patches_per_side
        self.query = parameter(vision.num_queries, size)
        self.pos_embed = parameter(vision.num_queries, size)
        self.kv_proj = (
            nn.Identity() if vision.width == size else Linear(vision.width, size, bias=False)
        )
        self.attn = CrossAttention(size, vision.pool_heads)
        self.ln_q = nn.LayerNorm(size, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(size, eps=NORM_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[images, patches, width] -> [images, queries, size]; positions are added to keys and queries only."""
        values = self.ln_kv(self.kv_proj(x))
        keys = values + resized_positions(self.pos_embed, self._side)
        out: torch.Tensor = self.attn(self.ln_q(self.query) + self.pos_embed, keys, values)
        return out


class VisionTower(TowerInPieces):
    """Encodes images into image tokens."""

    def __init__(self, vision: QwenVLVisionSpec, ops: Ops = REFERENCE) -> None:
        del ops  # this tower uses none of the shared operations
        super().__init__()
        self._side = vision.patches_per_side
        self.conv1 = Linear(vision.patch_values, vision.width, bias=False)
        self.positional_embedding = parameter(vision.position_table_side**2, vision.width)
        self.ln_pre = nn.LayerNorm(vision.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(vision) for _ in range(vision.num_layers))
        self.attn_pool = Resampler(vision)
        self.ln_post = nn.LayerNorm(vision.output_size, eps=NORM_EPS)
        self.proj = parameter(vision.output_size, vision.output_size)

    def pieces(
        self, patches: Sequence[torch.Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> Pieces[list[torch.Tensor]]:
        """Encodes images.

        Args:
            patches: For each image [side * side, patch_values] in the dtype of the weights, row by row.
            grids: For each image (1, side, side).

        Returns:
            For each image [queries, output_size] in the dtype of the weights: views of one tensor.
        """
        if any(grid != (1, self._side, self._side) for grid in grids):
            raise ValueError(f"images must have {self._side} x {self._side} patches: {grids}")
        x = self.conv1(torch.stack(list(patches)))
        x = self.ln_pre(x + resized_positions(self.positional_embedding, self._side))
        yield
        count, rows, _ = x.shape
        images = torch.arange(count * rows, device=x.device).view(count, rows)
        x = x.flatten(0, 1)
        for block in cast("Iterable[Block]", self.blocks):
            x = yield from block.pieces(x, images)
        resampled = []
        for image in x.view(count, 1, rows, -1):
            resampled.append(self.attn_pool(image))
            yield
        tokens = self.ln_post(torch.cat(resampled)) @ self.proj
        return list(tokens.unbind(0))
