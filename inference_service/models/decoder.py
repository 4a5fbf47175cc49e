"""The decoder of all families, with a paged KV cache; families differ in the settings of `DecoderSpec`."""

from __future__ import annotations

import math

import torch
from torch import nn

from inference_service.kernels.attention import AttentionMetadata
from inference_service.kernels.heads import HeadNorms, Rotation
from inference_service.kernels.layers import Embedding, Linear, RMSNorm
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.rope import inverse_frequencies, mrope_cos_sin
from inference_service.model_spec import DecoderSpec
from inference_service.models.batch import ForwardBatch, KVCache


class Attention(nn.Module):
    """Grouped-query self-attention with fused projections."""

    def __init__(self, spec: DecoderSpec, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self._head_dim = spec.head_dim
        self._scale = spec.head_dim**-0.5
        fused = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        attended = spec.num_heads * spec.head_dim
        self.qkv_proj = Linear(spec.hidden_size, fused, bias=spec.qkv_bias)
        self.o_proj = Linear(attended, spec.hidden_size, bias=spec.output_bias)
        self.q_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps, ops) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec.rms_norm_eps, ops) if spec.qk_norm else None

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        layer_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]; writes to `layer_cache` [2, pages, page_size, Hkv, D]."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self._head_dim)
        k_cache, v_cache = layer_cache
        q = self._ops.rotate_and_write(
            heads, self._norms(), rotation, (k_cache, v_cache), meta.slot_mapping
        )
        attended = self._ops.paged_attention(q, k_cache, v_cache, meta, self._scale)
        out: torch.Tensor = self.o_proj(attended.flatten(1))
        return out

    def _norms(self) -> HeadNorms | None:
        # Read in every call, as moving a module to a device replaces its parameters.
        q_norm, k_norm = self.q_norm, self.k_norm
        if q_norm is None or k_norm is None:
            return None
        return HeadNorms(q_norm.weight, k_norm.weight, q_norm.eps)


class MLP(nn.Module):
    """SwiGLU with a fused input projection."""

    def __init__(self, spec: DecoderSpec, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self.gate_up_proj = Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=False)
        self.down_proj = Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] -> [T, hidden]."""
        out: torch.Tensor = self.down_proj(self._ops.silu_and_mul(self.gate_up_proj(x)))
        return out


class Layer(nn.Module):
    """Attention and MLP, each after a norm that also adds the previous output to the residual stream."""

    def __init__(self, spec: DecoderSpec, ops: Ops) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, ops)
        self.self_attn = Attention(spec, ops)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, ops)
        self.mlp = MLP(spec, ops)

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor,
        rotation: Rotation,
        layer_cache: torch.Tensor,
        meta: AttentionMetadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes one layer; `x` is the previous layer's output, not yet added to the residual stream.

        Args:
            x: [T, hidden].
            residual: [T, hidden]; zeros in the first layer.
            rotation: The rotation of queries and keys.
            layer_cache: [2, pages, page_size, Hkv, D].
            meta: The places of the tokens in the cache.

        Returns:
            The same pair for the next layer.
        """
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, rotation, layer_cache, meta)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class Decoder(nn.Module):
    """Token embedding, layers, final norm and output head.

    Attributes:
        handovers: Layers before which a step moves to another device; empty if all are on one.
    """

    def __init__(self, spec: DecoderSpec, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.spec = spec
        self.embed_tokens = Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, ops) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps, ops)
        tied_to = self.embed_tokens if spec.tie_word_embeddings else None
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size, bias=False, tied_to=tied_to)
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
        x = self.embed_tokens(batch.token_ids)
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
        x, _ = self.norm.add(x, residual)
        return x

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[R, hidden] -> [R, vocab] float32, in `out` if that is given."""
        scores: torch.Tensor = self.lm_head(hidden)
        return scores.float() if out is None else out.copy_(scores)

    def _rotation(self, batch: ForwardBatch) -> Rotation:
        frequencies, axes = self._rope_table(batch.positions.device)
        levels = 0 if batch.rope_levels is None else batch.rope_levels
        cos, sin = mrope_cos_sin(batch.positions, frequencies[levels], axes)
        scale, length = None, self.spec.logn_length
        if length is not None:
            place = batch.positions[0].double() + 1
            scale = (place.log() / math.log(length)).clamp(min=1).float()
        return Rotation(cos, sin, scale, self.spec.rope.adjacent_pairs)

    def _rope_table(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Frequencies [levels, F] and their axes; not parameters, so that they need not be loaded."""
        if self._rope is None:
            rope, dim = self.spec.rope, self.spec.rope.dim
            bases = [rope.theta]
            if rope.ntk is not None:
                levels = range(rope.ntk.num_levels)
                bases = [rope.ntk.theta(level, rope.theta, dim) for level in levels]
            frequencies = torch.stack([inverse_frequencies(dim, base, device) for base in bases])
            self._rope = (frequencies, torch.tensor(rope.frequency_axes(), device=device))
        return self._rope
