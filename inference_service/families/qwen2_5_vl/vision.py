"""The vision tower of Qwen2.5-VL, with window attention in most blocks and full attention in some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn

from inference_service.families.qwen2_5_vl.spec import Qwen25VisionSpec
from inference_service.families.qwen_common.vision import (
    NORM_EPS,
    Block,
    Grid,
    Layout,
    Merger,
    PatchEmbed,
    attention_segments,
    axial_rope,
    merged_in_pieces,
    split_images,
)
from inference_service.kernels.layers import Linear, RMSNorm
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.pieces import Pieces, TowerInPieces


class VisionMLP(nn.Module):
    """SwiGLU with biases and a fused input projection."""

    def __init__(self, vision: Qwen25VisionSpec, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.gate_up_proj = Linear(vision.hidden_size, 2 * vision.intermediate_size)
        self.down_proj = Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, hidden]."""
        out: torch.Tensor = self.down_proj(self._ops.silu_and_mul(self.gate_up_proj(x)))
        return out


class VisionTower(TowerInPieces):
    """Encodes images and videos into image tokens."""

    def __init__(self, vision: Qwen25VisionSpec, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.vision = vision
        self._ops = ops
        self.patch_embed = PatchEmbed(vision, bias=False)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, NORM_EPS, ops)

        self.blocks = nn.ModuleList(
            Block(vision, norm, VisionMLP(vision, ops), ops) for _ in range(vision.num_layers)
        )
        self.merger = Merger(vision, norm(vision.hidden_size))

    def pieces(
        self, patches: Sequence[torch.Tensor], grids: Sequence[Grid]
    ) -> Pieces[list[torch.Tensor]]:
        """Encodes images and videos, packed into one batch.

        Args:
            patches: For each image [n, patch_values] in the dtype of the weights, in the order of `Patchifier`.
            grids: For each image (frames, rows, columns) in patches.

        Returns:
            For each image [n / merge_size^2, output_size]: views of one tensor.
        """
        layout = Layout.of(grids, self.vision.merge_size)
        labels = window_labels(layout, self.vision)
        x = yield from self.patch_embed.pieces(patches)
        order = None
        if self._ops.packs:
            # Windows, and frames as well, then lie one after the other. Those of a token stay neighbours.
            order = torch.argsort(labels, stable=True)
            layout = Layout(layout.places[:, order], layout.frames[order])
            labels = labels[order]
            x = x.index_select(0, order.to(x.device))
        rope = axial_rope(layout.places.to(x.device), self.vision.head_dim)
        frames = attention_segments(layout.frames, self.vision, x.device, self._ops)
        windows = attention_segments(labels, self.vision, x.device, self._ops)
        for i, block in enumerate(cast("Iterable[Block]", self.blocks)):
            x = yield from block.pieces(
                x, rope, frames if i in self.vision.full_attention_layers else windows
            )
        merged = yield from merged_in_pieces(self.merger, x, self.vision)
        if order is not None:
            place = torch.argsort(order[:: self.vision.merge_size**2])
            merged = merged.index_select(0, place.to(x.device))
        return split_images(merged, grids, self.vision.merge_size)


def window_labels(layout: Layout, vision: Qwen25VisionSpec) -> torch.Tensor:
    """[N] int64: the window of each patch; windows at the right and lower edges of a frame may be smaller."""
    # Windows are whole tokens: the side in tokens is rounded down.
    side = vision.window_size // vision.patch_size // vision.merge_size * vision.merge_size
    rows, columns = layout.places // side
    across, down = columns.max() + 1, rows.max() + 1
    labels: torch.Tensor = (layout.frames * down + rows) * across + columns
    return labels
