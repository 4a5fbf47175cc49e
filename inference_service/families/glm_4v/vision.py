"""The vision tower and adapter of GLM-4V-9B: encode a square of patches into image tokens.

The blocks are followed by a convolution and a gated MLP; learned vectors mark the begin and the end of an image.
Source: visual.py of the release (EVA2-CLIP, arXiv 2402.04252).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.functional import gelu, silu

from inference_service.families.glm_4v.spec import POOL_SIDE, GlmVisionSpec
from inference_service.kernels import pieces
from inference_service.kernels.layers import Linear, parameter
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.pieces import Pieces, TowerInPieces


ADAPTER_NORM_EPS = 1e-5


class PatchEmbedding(nn.Module):
    """Embeds the class token and the patches, with learned positions."""

    def __init__(self, vision: GlmVisionSpec) -> None:
        super().__init__()
        self.cls_embedding = parameter(1, vision.hidden_size)
        self.proj = Linear(vision.patch_values, vision.hidden_size)
        self.position_embedding = nn.Embedding(vision.patches_per_side**2 + 1, vision.hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[images, patches, patch_values] -> [images, 1 + patches, hidden]."""
        projected = self.proj(patches)
        first = self.cls_embedding.expand(len(projected), 1, -1)
        return torch.cat((first, projected), dim=1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """The projections of self-attention."""

    def __init__(self, vision: GlmVisionSpec) -> None:
        super().__init__()
        self._heads = vision.num_heads
        self.query_key_value = Linear(vision.hidden_size, 3 * vision.hidden_size)
        self.dense = Linear(vision.hidden_size, vision.hidden_size)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values [n, heads, D] of rows [n, hidden]."""
        q, k, v = self.query_key_value(x).view(len(x), 3, self._heads, -1).unbind(1)
        return q, k, v


class VisionMLP(nn.Module):
    """Two linear maps with the exact GELU between them."""

    def __init__(self, vision: GlmVisionSpec) -> None:
        super().__init__()
        self.fc1 = Linear(vision.hidden_size, vision.intermediate_size)
        self.fc2 = Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., hidden] -> the same shape."""
        out: torch.Tensor = self.fc2(gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP; unlike in other towers, their outputs are normalised, not their inputs."""

    def __init__(self, vision: GlmVisionSpec) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.norm_eps)
        self.attention = VisionAttention(vision)
        self.post_attention_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.norm_eps)
        self.mlp = VisionMLP(vision)

    def pieces(self, x: torch.Tensor, images: torch.Tensor) -> Pieces[torch.Tensor]:
        """[N, hidden] -> [N, hidden]; attention is limited to images, each a row of numbers [images, rows]."""

        def finish(rows: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
            y = x[rows] + self.input_layernorm(self.attention.dense(attended))
            out: torch.Tensor = y + self.post_attention_layernorm(self.mlp(y))
            return out

        return pieces.block(x, [images], lambda rows: self.attention.project(x[rows]), finish)


class Adapter(nn.Module):
    """A linear map and a gated MLP, without residual connections."""

    def __init__(self, vision: GlmVisionSpec) -> None:
        super().__init__()
        size, inner = vision.output_size, vision.adapter_size
        self.flop_per_row = 2 * size * (size + 3 * inner)
        self.linear_proj = Linear(size, size, bias=False)
        self.norm1 = nn.LayerNorm(size, eps=ADAPTER_NORM_EPS)
        self.dense_h_to_4h = Linear(size, inner, bias=False)
        self.gate_proj = Linear(size, inner, bias=False)
        self.dense_4h_to_h = Linear(inner, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., output_size] -> the same shape."""
        x = gelu(self.norm1(self.linear_proj(x)))
        out: torch.Tensor = self.dense_4h_to_h(silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
        return out


class VisionTower(TowerInPieces):
    """Encodes images into image tokens."""

    def __init__(self, vision: GlmVisionSpec, ops: Ops = REFERENCE) -> None:
        del ops  # this tower uses none of the shared operations
        super().__init__()
        self._side = vision.patches_per_side
        self._scaling_factor = vision.scaling_factor
        self.patch_embedding = PatchEmbedding(vision)
        self.blocks = nn.ModuleList(Block(vision) for _ in range(vision.num_layers))
        self.conv = nn.Conv2d(vision.hidden_size, vision.output_size, POOL_SIDE, stride=POOL_SIDE)
        self.adapter = Adapter(vision)
        self.boi = parameter(1, vision.output_size)
        self.eoi = parameter(1, vision.output_size)

    def pieces(
        self, patches: Sequence[torch.Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> Pieces[list[torch.Tensor]]:
        """Encodes images.

        Args:
            patches: For each image [side * side, patch_values] in the dtype of the weights, row by row.
            grids: For each image (1, side, side).

        Returns:
            For each image [num_tokens, output_size]: begin, tokens row by row, end; views of one tensor.
        """
        if any(grid != (1, self._side, self._side) for grid in grids):
            raise ValueError(f"images must have {self._side} x {self._side} patches: {grids}")
        x = self.patch_embedding(torch.stack(list(patches)))
        yield
        count, rows, _ = x.shape
        x = x.flatten(0, 1)
        images = torch.arange(count * rows, device=x.device).view(count, rows)
        for block in cast("Iterable[Block]", self.blocks):
            x = yield from block.pieces(x, images)
        square = x.view(count, rows, -1)[:, 1:].transpose(1, 2).unflatten(2, (self._side, -1))
        pooled = []
        for image in square:
            pooled.append(self.conv(image).flatten(1).T)
            yield
        tokens = yield from pieces.rowwise(
            self.adapter, torch.cat(pooled), self.adapter.flop_per_row
        )
        tokens = tokens.view(count, -1, tokens.shape[1])
        begin, end = (vector.expand(count, 1, -1) for vector in (self.boi, self.eoi))
        return list((torch.cat((begin, tokens, end), dim=1) / self._scaling_factor).unbind(0))
