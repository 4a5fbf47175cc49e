"""The vision tower of Qwen2-VL: encodes patches of several images into image tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn

from inference_service.families.qwen_common.config import QwenVisionSpec
from inference_service.families.qwen_common.vision import (
    Block,
    Grid,
    Layout,
    Merger,
    PatchEmbed,
    attention_segments,
    axial_rope,
    layer_norm,
    merged_in_pieces,
    split_images,
)
from inference_service.kernels.layers import Linear
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.pieces import Pieces, TowerInPieces


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU approximated by a sigmoid, as in OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


class VisionMLP(nn.Module):
    """Two linear maps with the sigmoid approximation of GELU between them."""

    def __init__(self, vision: QwenVisionSpec) -> None:
        super().__init__()
        self.fc1 = Linear(vision.hidden_size, vision.intermediate_size)
        self.fc2 = Linear(vision.intermediate_size, vision.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N, hidden]."""
        out: torch.Tensor = self.fc2(quick_gelu(self.fc1(x)))
        return out


class VisionTower(TowerInPieces):
    """Encodes images and videos into image tokens."""

    def __init__(self, vision: QwenVisionSpec, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.vision = vision
        self._ops = ops
        self.patch_embed = PatchEmbed(vision, bias=False)
        self.blocks = nn.ModuleList(
            Block(vision, layer_norm, VisionMLP(vision), ops) for _ in range(vision.num_layers)
        )
        self.merger = Merger(vision, layer_norm(vision.hidden_size))

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
        x = yield from self.patch_embed.pieces(patches)
        rope = axial_rope(layout.places.to(x.device), self.vision.head_dim)
        segments = attention_segments(layout.frames, self.vision, x.device, self._ops)
        for block in cast("Iterable[Block]", self.blocks):
            x = yield from block.pieces(x, rope, segments)
        merged = yield from merged_in_pieces(self.merger, x, self.vision)
        return split_images(merged, grids, self.vision.merge_size)
