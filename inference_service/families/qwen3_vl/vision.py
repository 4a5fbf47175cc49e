"""The vision tower of Qwen3-VL: encodes patches into image tokens with deepstack features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn.functional import gelu

from inference_service.families.qwen3_vl.spec import Qwen3VisionSpec
from inference_service.families.qwen_common.vision import (
    Block,
    Grid,
    Layout,
    PatchEmbed,
    attention_segments,
    axial_rope,
    layer_norm,
    merged_in_pieces,
    split_images,
)
from inference_service.kernels.layers import Linear, parameter
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.pieces import Pieces, TowerInPieces


class PositionTable(nn.Module):
    """Learned positions on a square grid, interpolated bilinearly to an image's grid with aligned corners."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self._side = vision.position_table_side
        self.weight = parameter(self._side**2, vision.hidden_size)

    def forward(
        self, patch_rows: torch.Tensor, patch_columns: torch.Tensor, rows: int, columns: int
    ) -> torch.Tensor:
        """Positions [n, hidden] float32 of the patches at ([n], [n]) in an image of rows x columns patches."""
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
        """Table entries on both sides of `size` evenly spaced points, and the weight of the second."""
        place = index.float() * (self._side - 1) / max(size - 1, 1)
        lower = place.floor()
        entry = lower.long()
        return entry, (entry + 1).clamp(max=self._side - 1), place - lower


class VisionMLP(nn.Module):
    """Two linear maps with the tanh approximation of GELU between them."""

    def __init__(self, vision: Qwen3VisionSpec) -> None:
        super().__init__()
        self.linear_fc1 = Linear(vision.hidden_size, vision.intermediate_size)
        self.linear_fc2 = Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, hidden]."""
        out: torch.Tensor = self.linear_fc2(gelu(self.linear_fc1(x), approximate="tanh"))
        return out


class Merger(nn.Module):
    """Merges merge_size x merge_size patches into one token; the norm comes before or after merging."""

    def __init__(self, vision: Qwen3VisionSpec, *, norm_after_merging: bool) -> None:
        super().__init__()
        self._merged_size = vision.merged_size
        self._norm_size = vision.merged_size if norm_after_merging else vision.hidden_size
        self.norm = layer_norm(self._norm_size)
        self.linear_fc1 = Linear(vision.merged_size, vision.merged_size)
        self.linear_fc2 = Linear(vision.merged_size, vision.output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N / merge_size^2, output_size]."""
        x = self.norm(x.view(-1, self._norm_size)).view(-1, self._merged_size)
        out: torch.Tensor = self.linear_fc2(gelu(self.linear_fc1(x)))
        return out


class VisionTower(TowerInPieces):
    """Encodes images and videos into image tokens with deepstack features."""

    def __init__(self, vision: Qwen3VisionSpec, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.vision = vision
        self._ops = ops
        self.patch_embed = PatchEmbed(vision, bias=True)
        self.pos_embed = PositionTable(vision)
        self.blocks = nn.ModuleList(
            Block(vision, layer_norm, VisionMLP(vision), ops) for _ in range(vision.num_layers)
        )
        self.merger = Merger(vision, norm_after_merging=False)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(vision, norm_after_merging=True) for _ in vision.deepstack_layers
        )

    def pieces(
        self, patches: Sequence[torch.Tensor], grids: Sequence[Grid]
    ) -> Pieces[list[torch.Tensor]]:
        """Encodes images and videos, packed into one batch.

        Args:
            patches: For each image [n, patch_values] in the dtype of the weights, in the order of `Patchifier`.
            grids: For each image (frames, rows, columns) in patches.

        Returns:
            For each image [n / merge_size^2, output_size * (1 + D)]: the token, then D deepstack features; views of
            one tensor.
        """
        layout = Layout.of(grids, self.vision.merge_size)
        x = yield from self.patch_embed.pieces(patches)
        places = layout.places.to(x.device)
        x = x + self._learned_positions(places, grids).to(x.dtype)
        rope = axial_rope(places, self.vision.head_dim)
        segments = attention_segments(layout.frames, self.vision, x.device, self._ops)
        features: list[torch.Tensor] = []
        for i, block in enumerate(cast("Iterable[Block]", self.blocks)):
            x = yield from block.pieces(x, rope, segments)
            if i in self.vision.deepstack_layers:
                merger = self.deepstack_merger_list[len(features)]
                features.append((yield from merged_in_pieces(merger, x, self.vision)))
        tokens = yield from merged_in_pieces(self.merger, x, self.vision)
        merged = torch.cat([tokens, *features], dim=1)
        return split_images(merged, grids, self.vision.merge_size)

    def _learned_positions(self, places: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """[N, hidden]; the same for every frame of a video."""
        lengths = [frames * rows * columns for frames, rows, columns in grids]
        parts = torch.split(places, lengths, dim=1)
        learned = [
            self.pos_embed(*part, *grid[1:]) for part, grid in zip(parts, grids, strict=True)
        ]
        return torch.cat(learned)
