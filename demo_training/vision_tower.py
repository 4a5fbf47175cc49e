"""The vision tower of the demo network: Qwen3-VL's, for images of one size at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from demo_training.images import MERGE, PATCH
from demo_training.network_config import EPS, NetworkConfig
from demo_training.rotary import Rotation, rotate


VISION_THETA = 10_000.0
CHANNELS, FRAMES = 3, 2


class PatchEmbed(nn.Module):
    """A linear map of patches, stored as a convolution, as in the checkpoint."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        kernel = (FRAMES, PATCH, PATCH)
        self.proj = nn.Conv3d(CHANNELS, config.vision_size, kernel, kernel)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[..., 768] one frame -> [..., vision_size]; a still image repeats its frame, so the weights are summed."""
        weight = self.proj.weight.sum(2).flatten(1)
        return nn.functional.linear(patches, weight, self.proj.bias)


class VisionAttention(nn.Module):
    """Attention among the patches of an image."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._heads = config.vision_heads
        self.qkv = nn.Linear(config.vision_size, 3 * config.vision_size)
        self.proj = nn.Linear(config.vision_size, config.vision_size)

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """[B, N, vision_size] -> the same."""
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self._heads, width // self._heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v)
        out: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class VisionMLP(nn.Module):
    """Two linear maps with the tanh approximation of GELU between them."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.vision_size, config.vision_mlp_size)
        self.linear_fc2 = nn.Linear(config.vision_mlp_size, config.vision_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, vision_size] -> the same."""
        out: torch.Tensor = self.linear_fc2(gelu(self.linear_fc1(x), approximate="tanh"))
        return out


class VisionBlock(nn.Module):
    """Attention and MLP, each with a layer norm before it."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.vision_size, eps=EPS)
        self.norm2 = nn.LayerNorm(config.vision_size, eps=EPS)
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """[B, N, vision_size] -> the same."""
        x = x + self.attn(self.norm1(x), rotation)
        out: torch.Tensor = x + self.mlp(self.norm2(x))
        return out


class Merger(nn.Module):
    """Merges 2 x 2 patches into one token; deepstack mergers normalise after merging."""

    def __init__(self, config: NetworkConfig, *, norm_after: bool) -> None:
        super().__init__()
        self._merged = config.vision_size * MERGE**2
        self._normed = self._merged if norm_after else config.vision_size
        self.norm = nn.LayerNorm(self._normed, eps=EPS)
        self.linear_fc1 = nn.Linear(self._merged, self._merged)
        self.linear_fc2 = nn.Linear(self._merged, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, vision_size] -> [B, N / 4, hidden_size]."""
        batch = len(x)
        normed = self.norm(x.reshape(batch, -1, self._normed)).view(batch, -1, self._merged)
        out: torch.Tensor = self.linear_fc2(gelu(self.linear_fc1(normed)))
        return out


@dataclass(frozen=True, slots=True)
class PatchGeometry:
    """Values that depend only on the grid of patches; rows are patches in blocks of 2 x 2.

    Attributes:
        rotation: Cosines and sines, each [N, vision head].
        neighbours: [4, N] entries of the position table around each patch.
        shares: [4, N] their bilinear weights.
    """

    rotation: Rotation
    neighbours: torch.Tensor
    shares: torch.Tensor


def _in_blocks(grid: torch.Tensor) -> torch.Tensor:
    """[rows, columns] -> [N] in the order of the patches."""
    rows, columns = grid.shape
    blocks = grid.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE)
    return blocks.permute(0, 2, 1, 3).reshape(-1)


def patch_geometry(
    config: NetworkConfig, rows: int, columns: int, device: torch.device
) -> PatchGeometry:
    """Rotations and table entries for an image of rows x columns patches."""
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=device)[None].expand(rows, columns)
    half = config.vision_size // config.vision_heads // 2
    speeds = 1 / VISION_THETA ** (torch.arange(0, half, 2, device=device).float() / half)
    turned = torch.cat([_in_blocks(at)[:, None] * speeds for at in (row, column)], -1)
    angles = torch.cat((turned, turned), -1)

    last = config.position_side - 1
    y = torch.linspace(0, last, rows, device=device)[:, None].expand(rows, columns)
    x = torch.linspace(0, last, columns, device=device)[None].expand(rows, columns)
    y0, x0 = y.floor().long(), x.floor().long()
    y1, x1 = (y0 + 1).clamp(max=last), (x0 + 1).clamp(max=last)
    dy, dx = y - y0, x - x0
    corners = ((y0, x0), (y0, x1), (y1, x0), (y1, x1))
    shares = ((1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx)
    return PatchGeometry(
        (angles.cos(), angles.sin()),
        torch.stack([_in_blocks(a * config.position_side + b) for a, b in corners]),
        torch.stack([_in_blocks(share) for share in shares]),
    )


class Visual(nn.Module):
    """The vision tower."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._config = config
        self._geometries: dict[tuple[int, int], PatchGeometry] = {}
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.position_side**2, config.vision_size)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.vision_layers))
        self.merger = Merger(config, norm_after=False)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(config, norm_after=True) for _ in config.deepstack
        )

    def forward(
        self, patches: torch.Tensor, rows: int, columns: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encodes images of one size.

        Args:
            patches: [B, rows * columns, 768] float in -1..1, in the order of `images.patches`.
            rows: Patches from top to bottom.
            columns: Patches from left to right.

        Returns:
            Tokens [B, N / 4, hidden_size], and as many features of each deepstack level.
        """
        if (rows, columns) not in self._geometries:
            device = self.pos_embed.weight.device
            self._geometries[rows, columns] = patch_geometry(self._config, rows, columns, device)
        geometry = self._geometries[rows, columns]
        learned = (self.pos_embed(geometry.neighbours) * geometry.shares[..., None]).sum(0)
        x = self.patch_embed(patches) + learned
        features: list[torch.Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, geometry.rotation)
            if index in self._config.deepstack:
                features.append(self.deepstack_merger_list[len(features)](x))
        return self.merger(x), features
