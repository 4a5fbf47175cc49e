"""The demo network for training: Qwen3-VL's architecture with padded batches.

Parameters have the names of a Qwen3-VL checkpoint. It is implemented independently of `inference_service.models`, so
that each verifies the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, rms_norm, scaled_dot_product_attention, silu

from demo_training.images import MERGE, PATCH


EPS = 1e-6
VISION_THETA = 10_000.0
CHANNELS, FRAMES = 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Sizes of the network; the defaults are those of the embedded checkpoint.

    Attributes:
        vocab_size: Rows of the token embedding, which is also the output head.
        hidden_size: Width of the decoder.
        layers: Decoder layers.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        mlp_size: Width of the gated MLP.
        rope_theta: Base of the rotary frequencies.
        mrope_section: Frequencies of time, height and width; the sum is head_dim / 2.
        vision_size: Width of the vision tower.
        vision_layers: Its blocks.
        vision_heads: Its heads.
        vision_mlp_size: Width of its MLPs.
        position_side: Side of the table of learned positions.
        deepstack: Blocks from which features go to the first decoder layers.
        max_positions: Context window in tokens.
    """

    vocab_size: int = 1024
    hidden_size: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 48
    mlp_size: int = 512
    rope_theta: float = 10_000.0
    mrope_section: tuple[int, int, int] = (8, 8, 8)
    vision_size: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    vision_mlp_size: int = 384
    position_side: int = 8
    deepstack: tuple[int, ...] = (2,)
    max_positions: int = 4096


Rotation = tuple[torch.Tensor, torch.Tensor]


def _rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotary embedding of [..., T, D] by cosines and sines that broadcast to it; halves are pairs."""
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


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
        mixed = scaled_dot_product_attention(_rotate(q, rotation), _rotate(k, rotation), v)
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


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same."""
        return rms_norm(x, (x.shape[-1],), self.weight, EPS)


class Attention(nn.Module):
    """Causal attention with shared key heads; queries and keys are normalised per head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._head_dim = config.head_dim
        wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, wide, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim)
        self.k_norm = RMSNorm(config.head_dim)

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """[B, T, hidden_size] -> the same."""
        batch, length, _ = x.shape
        shape = (batch, length, -1, self._head_dim)
        q = _rotate(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2), rotation)
        k = _rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2), rotation)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        shared = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        out: torch.Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return out


class MLP(nn.Module):
    """The gated MLP (SwiGLU)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, hidden_size] -> the same."""
        out: torch.Tensor = self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each with an RMS norm before it."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size)
        self.post_attention_layernorm = RMSNorm(config.hidden_size)
        self.self_attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """[B, T, hidden_size] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), rotation)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def _frequency_axes(config: NetworkConfig) -> torch.Tensor:
    """[head_dim / 2] the axis of each frequency: time, height, width, time, ... (interleaved)."""
    axes = torch.zeros(config.head_dim // 2, dtype=torch.long)
    for axis in (1, 2):
        axes[axis : config.mrope_section[axis] * 3 : 3] = axis
    return axes


class LanguageModel(nn.Module):
    """The decoder, with deepstack features added to its first layers."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden_size)
        steps = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        self._speeds: torch.Tensor
        self._axes: torch.Tensor
        self.register_buffer("_speeds", 1 / config.rope_theta**steps, persistent=False)
        self.register_buffer("_axes", _frequency_axes(config), persistent=False)

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """[3, B, T] -> cosines and sines, each [B, 1, T, head_dim]."""
        turned = positions[self._axes].permute(1, 2, 0).float() * self._speeds
        angles = torch.cat((turned, turned), -1)[:, None]
        return angles.cos(), angles.sin()

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        image_tokens: torch.Tensor,
        features: list[torch.Tensor],
    ) -> torch.Tensor:
        """[B, T, hidden_size] embeddings -> the same after the final norm."""
        rotation = self.rotation(positions)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation)
            if index < len(features):
                added = x[image_tokens] + features[index].flatten(0, -2)
                x = x.masked_scatter(image_tokens[..., None], added)
        out: torch.Tensor = self.norm(x)
        return out


class Model(nn.Module):
    """Both parts, with the names of the checkpoint."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.visual = Visual(config)
        self.language_model = LanguageModel(config)


class Network(nn.Module):
    """The whole network; the output head is the token embedding."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Model(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_first_scale(name, parameter))

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        patches: torch.Tensor | None,
        grid: tuple[int, int],
        image_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Runs the network over a padded batch.

        Args:
            token_ids: [B, T] int64, padded at the end.
            positions: [3, B, T] int64: time, height, width.
            patches: [B, images, N, 768] float in -1..1, or None without images.
            grid: Rows and columns of patches, the same in all images.
            image_tokens: [B, T] bool, true at image tokens.

        Returns:
            [B, T, hidden_size] after the final norm, the input of `logits`.
        """
        language = self.model.language_model
        x = language.embed_tokens(token_ids)
        features: list[torch.Tensor] = []
        if patches is not None:
            tokens, features = self.model.visual(patches.flatten(0, 1), *grid)
            x = x.masked_scatter(image_tokens[..., None], tokens.flatten(0, 1))
        out: torch.Tensor = language(x, positions, image_tokens, features)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] -> [..., vocab_size]."""
        return hidden @ self.model.language_model.embed_tokens.weight.T


def _first_scale(name: str, parameter: torch.Tensor) -> float:
    """Standard deviation of the initial values; half for maps into the residual stream."""
    if "embed" in name:
        return 0.2 if "pos" in name else 0.02
    into_stream = any(part in name for part in ("o_proj", "down", "proj.weight", "fc2"))
    scale: float = parameter[0].numel() ** -0.5
    return scale * 0.5 if into_stream else scale
