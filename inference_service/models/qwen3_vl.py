"""The vision tower of Qwen3-VL: patches of several pictures in, picture tokens with deepstack features out.

Owns its blocks and mergers. Must not know the decoder, checkpoints (`tables` names the parameters) or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from inference_service.kernels.rope import apply_rope, inverse_frequencies, mrope_cos_sin
from inference_service.models.families.qwen3_vl import Qwen3VisionSpec
from inference_service.models.families.qwen_config import VISION_ROPE_THETA


NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """A convolution whose stride is its kernel: a linear map of each patch."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self.proj = nn.Linear(vision.patch_values, vision.hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, patch_values] -> [N, hidden]."""
        projected: torch.Tensor = self.proj(patches)
        return projected


class PositionTable(nn.Module):
    """Learned positions on a square grid, interpolated bilinearly to a picture's own, corners on corners."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self._side = vision.position_table_side
        self.weight = nn.Parameter(
            torch.empty(self._side**2, vision.hidden_size), requires_grad=False
        )

    def forward(
        self, patch_rows: torch.Tensor, patch_columns: torch.Tensor, rows: int, columns: int
    ) -> torch.Tensor:
        """Positions [n, hidden] float32 of the patches at ([n], [n]) in a picture of rows x columns patches."""
        top, bottom, down = self._neighbours(patch_rows, rows)
        left, right, across = self._neighbours(patch_columns, columns)
        total = torch.zeros((), device=self.weight.device)
        for row, row_weight in ((top, 1 - down), (bottom, down)):
            for column, column_weight in ((left, 1 - across), (right, across)):
                weight = (row_weight * column_weight)[:, None]
                total = total + self.weight[row * self._side + column] * weight
        return total

    def _neighbours(
        self, index: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Table entries on both sides of each of `size` evenly spread places, and the share of the second."""
        place = index.float() * (self._side - 1) / max(size - 1, 1)
        lower = place.floor()
        entry = lower.long()
        return entry, (entry + 1).clamp(max=self._side - 1), place - lower


class VisionAttention(nn.Module):
    """Self-attention within each picture."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self._heads = (3, vision.num_heads, vision.head_dim)
        self.qkv = nn.Linear(vision.hidden_size, 3 * vision.hidden_size)
        self.proj = nn.Linear(vision.hidden_size, vision.hidden_size)

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        groups: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        """[N, hidden] -> [N, hidden]; groups: (number of pictures, patches of each), in the order of the rows."""
        q, k, v = self.qkv(x).view(-1, *self._heads).unbind(1)
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        out = torch.empty_like(q)
        start = 0
        for pictures, patches in groups:
            rows = slice(start, start + pictures * patches)
            shape = (pictures, patches, *q.shape[1:])
            queries, keys, values = (t[rows].reshape(shape).transpose(1, 2) for t in (q, k, v))
            attended = scaled_dot_product_attention(queries, keys, values)
            out[rows] = attended.transpose(1, 2).flatten(0, 1)
            start = rows.stop
        projected: torch.Tensor = self.proj(out.flatten(1))
        return projected


class VisionMLP(nn.Module):
    """Two linear maps with the tanh form of GELU between."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(vision.hidden_size, vision.intermediate_size)
        self.linear_fc2 = nn.Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, hidden]."""
        out: torch.Tensor = self.linear_fc2(gelu(self.linear_fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(vision.hidden_size, eps=NORM_EPS)
        self.attn = VisionAttention(vision)
        self.norm2 = nn.LayerNorm(vision.hidden_size, eps=NORM_EPS)
        self.mlp = VisionMLP(vision)

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        groups: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        """[N, hidden] -> [N, hidden]."""
        x = x + self.attn(self.norm1(x), rope, groups)
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class Merger(nn.Module):
    """Makes one token of merge_size x merge_size patches; the norm comes before or after they are put together."""

    def __init__(self, vision: Qwen3VisionSpec, *, norm_after_merging: bool) -> None:
        super().__init__()
        self._merged_size = vision.merged_size
        self._norm_size = vision.merged_size if norm_after_merging else vision.hidden_size
        self.norm = nn.LayerNorm(self._norm_size, eps=NORM_EPS)
        self.linear_fc1 = nn.Linear(vision.merged_size, vision.merged_size)
        self.linear_fc2 = nn.Linear(vision.merged_size, vision.output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N / merge_size^2, output_size]."""
        x = self.norm(x.view(-1, self._norm_size)).view(-1, self._merged_size)
        out: torch.Tensor = self.linear_fc2(gelu(self.linear_fc1(x)))
        return out


class VisionTower(nn.Module):
    """The whole tower."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self.vision = vision
        self.patch_embed = PatchEmbed(vision)
        self.pos_embed = PositionTable(vision)
        self.blocks = nn.ModuleList(Block(vision) for _ in range(vision.num_layers))
        self.merger = Merger(vision, norm_after_merging=False)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(vision, norm_after_merging=True) for _ in vision.deepstack_layers
        )

    def forward(
        self, patches: Sequence[torch.Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> list[torch.Tensor]:
        """Encodes pictures, packed into one batch; pictures of equal size share their attention call.

        Args:
            patches: For each picture [n, patch_values], in the order of `preprocess`.
            grids: For each picture (1, rows, columns) in patches.

        Returns:
            For each picture [n / merge_size^2, output_size * (1 + D)]: the token, then D deepstack features;
            each has its own memory.
        """
        order = sorted(range(len(grids)), key=lambda i: len(patches[i]))
        lengths = [len(patches[i]) for i in order]
        groups = [(len(list(equal)), length) for length, equal in groupby(lengths)]
        places = [self._patch_places(grids[i][1], grids[i][2]) for i in order]
        x = self.patch_embed(
            torch.cat([patches[i] for i in order]).to(self.patch_embed.proj.weight.dtype)
        )
        learned = [
            self.pos_embed(*place, *grids[i][1:]) for place, i in zip(places, order, strict=True)
        ]
        x = x + torch.cat(learned).to(x.dtype)
        rope = self._rope(torch.cat(places, dim=1))
        features: list[torch.Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x, rope, groups)
            if i in self.vision.deepstack_layers:
                features.append(self.deepstack_merger_list[len(features)](x))
        merged = torch.cat([self.merger(x), *features], dim=1)
        parts = torch.split(merged, [length // self.vision.merge_size**2 for length in lengths])
        tokens = dict(zip(order, parts, strict=True))
        # Copies: a view would keep the features of the whole step alive as long as one picture is cached.
        return [tokens[i].clone() for i in range(len(grids))]

    def _patch_places(self, rows: int, columns: int) -> torch.Tensor:
        """[2, rows * columns]: row and column of each patch, in the order in which patches come."""
        merge = self.vision.merge_size
        device = self.pos_embed.weight.device
        index = torch.arange(rows * columns, device=device)
        blocks = index.view(rows // merge, merge, columns // merge, merge).transpose(1, 2).flatten()
        return torch.stack((blocks // columns, blocks % columns))

    def _rope(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Angles of row and column: [N, head_dim / 2] each, the first half by row, the second by column."""
        half = inverse_frequencies(self.vision.head_dim // 2, VISION_ROPE_THETA, places.device)
        axes = torch.arange(2, device=places.device).repeat_interleave(len(half))
        return mrope_cos_sin(places, half.repeat(2), axes)
