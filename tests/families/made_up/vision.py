"""The vision tower of the made-up family."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from inference_service.kernels.ops import Ops
from tests.families.made_up.spec import MadeUpVisionSpec


class VisionTower(nn.Module):
    """A linear map."""

    def __init__(self, vision: MadeUpVisionSpec, ops: Ops) -> None:
        del ops  # its only operation is a matrix product
        super().__init__()
        self.eye = nn.Linear(vision.patch_values, vision.output_size, bias=False)

    def forward(
        self, patches: Sequence[torch.Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> list[torch.Tensor]:
        """For each image [patches, patch_values] -> [patches, output_size], views of one tensor."""
        del grids
        tokens = self.eye(torch.cat(list(patches)).to(self.eye.weight.dtype))
        return list(tokens.split([len(image) for image in patches]))
