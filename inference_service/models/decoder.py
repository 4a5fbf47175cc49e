"""The one decoder: what differs between families are settings in `DecoderSpec`.

Owns the layers of the language model over a paged KV cache.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import torch
from torch import nn
from torch.nn.functional import embedding, linear

from inference_service.kernels.attention import AttentionMetadata, paged_attention, write_kv
from inference_service.kernels.rms_norm import add_rms_norm, rms_norm
from inference_service.kernels.rope import apply_rope, inverse_frequencies, mrope_cos_sin
from inference_service.kernels.silu_and_mul import silu_and_mul
from inference_service.model_spec import DecoderSpec
from inference_service.models.batch import ForwardBatch, KVCache


class Weight(nn.Module):
    """A single parameter `weight` without arithmetic of its own: a norm's scale, an embedding, a tied head."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)


@dataclass(slots=True)
class Rotation:
    """What the positions of a step do to its queries and keys.

    Attributes:
        cos: [T, F] float32.
        sin: [T, F] float32.
        query_scale: [T] float32, factor of the turned queries; None = 1.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None

    def to(self, device: torch.device) -> Rotation:
        """The same for layers on another device."""
        scale = None if self.query_scale is None else self.query_scale.to(device)
        return Rotation(self.cos.to(device), self.sin.to(device), scale)


class Attention(nn.Module):
    """Grouped-query self-attention with fused projections."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self._eps = spec.rms_norm_eps
        self._heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        self._head_dim = spec.head_dim
        self._scale = spec.head_dim**-0.5
        self._adjacent_pairs = spec.rope.adjacent_pairs
        fused = sum(self._heads) * spec.head_dim
        self.qkv_proj = nn.Linear(spec.hidden_size, fused, bias=spec.qkv_bias)
        self.o_proj = nn.Linear(
            spec.num_heads * spec.head_dim, spec.hidden_size, bias=spec.output_bias
        )
        self.q_norm = Weight(spec.head_dim) if spec.qk_norm else None
        self.k_norm = Weight(spec.head_dim) if spec.qk_norm else None

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        layer_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> torch.Tensor:
        """From x [T, hidden] and layer_cache [2, pages, page_size, Hkv, D] to [T, hidden]; writes the cache."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self._head_dim)
        q, k, v = heads.split(self._heads, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q = rms_norm(q, self.q_norm.weight, self._eps)
            k = rms_norm(k, self.k_norm.weight, self._eps)
        angles, pairs = (rotation.cos, rotation.sin), self._adjacent_pairs
        q = apply_rope(q, *angles, adjacent_pairs=pairs)
        k = apply_rope(k, *angles, adjacent_pairs=pairs)
        if rotation.query_scale is not None:
            q = q * rotation.query_scale.to(q.dtype)[:, None, None]
        k_cache, v_cache = layer_cache
        write_kv(k, v, k_cache, v_cache, meta.slot_mapping)
        attended = paged_attention(q, k_cache, v_cache, meta, self._scale)
        out: torch.Tensor = self.o_proj(attended.flatten(1))
        return out


class MLP(nn.Module):
    """SwiGLU with a fused input projection."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        out: torch.Tensor = self.down_proj(silu_and_mul(self.gate_up_proj(x)))
        return out


class Layer(nn.Module):
    """Attention and MLP, each behind a norm that also takes in what came before it."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self._eps = spec.rms_norm_eps
        self.input_layernorm = Weight(spec.hidden_size)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = Weight(spec.hidden_size)
        self.mlp = MLP(spec)

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        layer_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes one layer; `x` is what the layer before left to be added to the residual stream.

        Args:
            x: [T, hidden].
            residual: [T, hidden]; zeros in the first layer.
            rotation: How the positions turn queries and keys.
            layer_cache: [2, pages, page_size, Hkv, D].
            meta: Where the tokens stand.

        Returns:
            The same pair for the layer behind.
        """
        x, residual = add_rms_norm(x, residual, self.input_layernorm.weight, self._eps)
        x = self.self_attn(x, rotation, layer_cache, meta)
        x, residual = add_rms_norm(x, residual, self.post_attention_layernorm.weight, self._eps)
        return self.mlp(x), residual


class Decoder(nn.Module):
    """Token embedding, layers, final norm and output head.

    Attributes:
        handovers: Layers before which a step goes on to another device; empty where all are on one.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = Weight(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))
        self.norm = Weight(spec.hidden_size)
        self.lm_head = (
            self.embed_tokens
            if spec.tie_word_embeddings
            else Weight(spec.vocab_size, spec.hidden_size)
        )
        self.handovers: dict[int, torch.device] = {}
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """Computes the new tokens of a step and writes their keys and values into the cache.

        Args:
            batch: The packed inputs.
            kv_cache: For each layer [2, pages, page_size, Hkv, D], on its device.

        Returns:
            [T, hidden], after the final norm.
        """
        x = embedding(batch.token_ids, self.embed_tokens.weight)
        deepstack: list[torch.Tensor] = []
        if batch.image_rows is not None and batch.image_embeddings is not None:
            images, *deepstack = torch.split(batch.image_embeddings, self.spec.hidden_size, dim=1)
            x.index_copy_(0, batch.image_rows, images)
        rotation, attention = self._rotation(batch), batch.attention
        residual = torch.zeros_like(x)
        for i, layer in enumerate(self.layers):
            if device := self.handovers.get(i):
                x, residual = x.to(device), residual.to(device)
                rotation, attention = rotation.to(device), attention.to(device)
            x, residual = layer(x, residual, rotation, kv_cache[i], attention)
            if i < len(deepstack) and batch.image_rows is not None:
                x.index_add_(0, batch.image_rows.to(x.device), deepstack[i].to(x.device))
        home = self.norm.weight.device
        x, residual = x.to(home), residual.to(home)
        x, _ = add_rms_norm(x, residual, self.norm.weight, self.spec.rms_norm_eps)
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[R, hidden] -> [R, vocab] float32."""
        return linear(hidden, self.lm_head.weight).float()

    def _rotation(self, batch: ForwardBatch) -> Rotation:
        frequencies, axes = self._rope_table(batch.positions.device)
        levels = 0 if batch.rope_levels is None else batch.rope_levels
        cos, sin = mrope_cos_sin(batch.positions, frequencies[levels], axes)
        scale, length = None, self.spec.logn_length
        if length is not None:
            place = batch.positions[0].double() + 1
            scale = (place.log() / math.log(length)).clamp(min=1).float()
        return Rotation(cos, sin, scale)

    def _rope_table(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Frequencies [levels, F] and their axes; no parameters, so that loading a model cannot leave them unset."""
        if self._rope is None:
            rope, dim = self.spec.rope, self.spec.rope.dim
            bases = [rope.theta]
            if rope.ntk is not None:
                levels = range(rope.ntk.num_levels)
                bases = [rope.ntk.theta(level, rope.theta, dim) for level in levels]
            frequencies = torch.stack([inverse_frequencies(dim, base, device) for base in bases])
            self._rope = (frequencies, torch.tensor(rope.frequency_axes(), device=device))
        return self._rope
