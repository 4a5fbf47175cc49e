"""Qwen-VL v1 once more, written from its description alone: no cache, no chunks, no batches, no fused weights.

An oracle for checkpoints of any size; it is itself held against the golden data of the original code. It shares
nothing with the code under test. Source: arXiv 2308.12966, and the facts of the release's modeling code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
import torch
from torch.nn.functional import gelu, interpolate, layer_norm, silu


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
LAYER_NORM_EPS = 1e-6


class Reference:
    """A checkpoint, float32.

    Args:
        config: Its config.json.
        tensors: Its weights by their published names.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self.config = config
        self.tensors = tensors

    @classmethod
    def load(cls, directory: Path, config: Mapping[str, Any]) -> Reference:
        """The weights of `model.safetensors`."""
        return cls(config, load_file(directory / "model.safetensors"))

    def alpha(self, length: int) -> int:
        """What the base of the rotary frequencies grows by, for a prompt of that many tokens."""
        if not self.config["use_dynamic_ntk"]:
            return 1
        doublings = math.ceil(math.log2(length / self.config["seq_length"]) + 1)
        return int(max(2**doublings - 1, 1))

    @torch.inference_mode()
    def logits(
        self, ids: Sequence[int], images: Sequence[np.ndarray], prompt_length: int
    ) -> torch.Tensor:
        """[T, vocab] of ids [T] whose placeholders stand for images [side, side, 3] uint8."""
        config, w = self.config, self.tensors
        x = w["transformer.wte.weight"][torch.tensor(list(ids))].clone()
        start = config["visual"]["image_start_id"]
        places = [at + 1 for at, token in enumerate(ids) if token == start]
        for place, image in zip(places, images, strict=True):
            seen = self.see(image)
            x[place : place + len(seen)] = seen
        turned = self._angles(len(x), self.alpha(prompt_length))
        for i in range(config["num_hidden_layers"]):
            layer = f"transformer.h.{i}."
            x = x + self._attention(layer, self._rms_norm(x, f"{layer}ln_1"), turned)
            h = self._rms_norm(x, f"{layer}ln_2")
            plain, gate = (h @ w[f"{layer}mlp.{name}.weight"].T for name in ("w1", "w2"))
            x = x + (plain * silu(gate)) @ w[f"{layer}mlp.c_proj.weight"].T
        return self._rms_norm(x, "transformer.ln_f") @ w["lm_head.weight"].T

    def _rms_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return (
            x
            / torch.sqrt(mean + self.config["layer_norm_epsilon"])
            * self.tensors[f"{name}.weight"]
        )

    def _angles(self, length: int, alpha: int) -> torch.Tensor:
        """[T, head_dim / 2]."""
        dim = self.config["kv_channels"]
        base = self.config["rotary_emb_base"] * alpha ** (dim / (dim - 2))
        frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        return (torch.arange(length)[:, None] * frequencies).float()

    def _attention(self, layer: str, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        w, heads = self.tensors, self.config["num_attention_heads"]
        mixed = x @ w[f"{layer}attn.c_attn.weight"].T + w[f"{layer}attn.c_attn.bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)) for part in mixed.chunk(3, -1))
        q, k = _turned(q, angles), _turned(k, angles)
        trained = self.config["seq_length"]
        if self.config["use_logn_attn"]:
            factors = [math.log(n, trained) if n > trained else 1.0 for n in range(1, len(x) + 1)]
            q = q * torch.tensor(factors)[:, None, None]
        mask = torch.full((len(x), len(x)), -math.inf).triu(1)
        attended = _attend(q, k, v, mask)
        return attended @ w[f"{layer}attn.c_proj.weight"].T

    @torch.inference_mode()
    def see(self, image: np.ndarray) -> torch.Tensor:
        """[side, side, 3] uint8 -> [queries, hidden]."""
        w, visual = self.tensors, self.config["visual"]
        size = visual["patch_size"]
        pixels = (torch.from_numpy(image).float() / 255 - MEAN) / STD
        patches = pixels.unfold(0, size, size).unfold(
            1, size, size
        )  # [rows, columns, 3, size, size]
        side = patches.shape[0]
        x = patches.flatten(2).flatten(0, 1) @ w["transformer.visual.conv1.weight"].flatten(1).T
        x = x + _resized(w["transformer.visual.positional_embedding"], side)
        x = self._layer_norm(x, "ln_pre")
        for i in range(visual["layers"]):
            block = f"transformer.resblocks.{i}."
            mixed = self._linear(self._layer_norm(x, f"{block}ln_1"), f"{block}attn.in_proj")
            q, k, v = mixed.unflatten(-1, (visual["heads"], 3, -1)).unbind(2)
            x = x + self._linear(_attend(q, k, v), f"{block}attn.out_proj")
            inner = gelu(self._linear(self._layer_norm(x, f"{block}ln_2"), f"{block}mlp.c_fc"))
            x = x + self._linear(inner, f"{block}mlp.c_proj")
        pooled = self._layer_norm(self._pool(x, side), "ln_post")
        return pooled @ w["transformer.visual.proj"]

    def _pool(self, x: torch.Tensor, side: int) -> torch.Tensor:
        w, pool = self.tensors, "transformer.visual.attn_pool."
        if f"{pool}kv_proj.weight" in w:
            x = x @ w[f"{pool}kv_proj.weight"].T
        values, positions = self._layer_norm(x, "attn_pool.ln_kv"), w[f"{pool}pos_embed"]
        queries = self._layer_norm(w[f"{pool}query"], "attn_pool.ln_q") + positions
        inputs = (queries, values + _resized(positions, side), values)
        weights = w[f"{pool}attn.in_proj_weight"].chunk(3)
        biases = w[f"{pool}attn.in_proj_bias"].chunk(3)
        heads = self.config["visual"]["output_dim"] // 128
        q, k, v = (
            (i @ weight.T + bias).unflatten(-1, (heads, -1))
            for i, weight, bias in zip(inputs, weights, biases, strict=True)
        )
        return self._linear(_attend(q, k, v), "attn_pool.attn.out_proj")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        name = f"transformer.visual.{name}"
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        name = f"transformer.visual.{name}"
        scale, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], scale, shift, LAYER_NORM_EPS)

    def greedy(
        self, ids: Sequence[int], images: Sequence[np.ndarray], number: int
    ) -> list[tuple[int, float]]:
        """So many new tokens and their log probabilities; the prompt alone chooses the frequencies."""
        all_ids = list(ids)
        answer: list[tuple[int, float]] = []
        while len(answer) < number:
            scores = self.logits(all_ids, images, len(ids))[-1].log_softmax(0)
            token = int(scores.argmax())
            answer.append((token, float(scores[token])))
            all_ids.append(token)
        return answer


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Pairs (j, j + half) of [T, heads, dim] turned by [T, half]."""
    one, two = x.chunk(2, -1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), -1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """[T, heads, dim] each -> [T, heads * dim]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def _resized(table: torch.Tensor, side: int) -> torch.Tensor:
    """A square table [s * s, D] for side * side places."""
    own = math.isqrt(len(table))
    if own == side:
        return table
    square = table.T.reshape(1, -1, own, own)
    return interpolate(square, (side, side), mode="bicubic", align_corners=False)[0].flatten(1).T
