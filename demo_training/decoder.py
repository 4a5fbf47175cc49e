"""The decoder of the demo network: Qwen3-VL's, for padded batches, without a cache."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from demo_training.network_config import EPS, NetworkConfig
from demo_training.rotary import Rotation, rotate


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
        q = rotate(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2), rotation)
        k = rotate(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2), rotation)
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
