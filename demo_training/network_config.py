"""Sizes of the demo network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


EPS: Final = 1e-6
"""Of every norm."""


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
