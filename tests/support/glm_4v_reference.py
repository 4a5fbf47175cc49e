"""GLM-4V-9B once more, written from its description alone: no cache, no chunks, no batches.

An oracle for checkpoints of any size; it is itself held against the golden data of the original code. It shares
nothing with the code under test. Source: the facts of the release's modeling code (arXiv 2406.12793).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, silu


MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
ADAPTER_EPS = 1e-5
VISION = "transformer.vision."


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

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], image: np.ndarray | None) -> torch.Tensor:
        """[T, vocab] of ids [T]; where the image's begin stands, so many stand for it as the tower gives."""
        w = self.tensors
        x = w["transformer.embedding.word_embeddings.weight"][torch.tensor(list(ids))].clone()
        places = torch.arange(len(ids))
        if image is not None:
            at, seen = list(ids).index(self.config["boi_token_id"]), self.see(image)
            x[at : at + len(seen)] = seen
            # The patches share one position, so that the text behind goes on where three tokens had ended.
            places[at + 1 : at + len(seen) - 1] = at + 1
            places[at + len(seen) - 1 :] = torch.arange(
                at + 2, at + 2 + len(ids) - at - len(seen) + 1
            )
        angles = self._angles(places)
        for i in range(self.config["num_layers"]):
            layer = f"transformer.encoder.layers.{i}."
            x = x + self._attention(layer, self._rms_norm(x, f"{layer}input_layernorm"), angles)
            h = self._rms_norm(x, f"{layer}post_attention_layernorm")
            gate, plain = (h @ w[f"{layer}mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
            x = x + (silu(gate) * plain) @ w[f"{layer}mlp.dense_4h_to_h.weight"].T
        x = self._rms_norm(x, "transformer.encoder.final_layernorm")
        return x @ w["transformer.output_layer.weight"].T

    def _rms_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return (
            x / torch.sqrt(mean + self.config["layernorm_epsilon"]) * self.tensors[f"{name}.weight"]
        )

    def _angles(self, places: torch.Tensor) -> torch.Tensor:
        """[T, turned / 2]: half of a head is turned."""
        turned = self.config["kv_channels"] // 2
        base = 10_000 * self.config["rope_ratio"]
        return places[:, None] * base ** (-torch.arange(0, turned, 2) / turned)

    def _attention(self, layer: str, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        w, dim = self.tensors, self.config["kv_channels"]
        heads, groups = self.config["num_attention_heads"], self.config["multi_query_group_num"]
        mixed = x @ w[f"{layer}self_attention.query_key_value.weight"].T
        mixed = mixed + w[f"{layer}self_attention.query_key_value.bias"]
        q, k, v = mixed.unflatten(-1, (-1, dim)).split((heads, groups, groups), 1)
        q, k = _turned(q, angles), _turned(k, angles)
        k, v = (part.repeat_interleave(heads // groups, 1) for part in (k, v))
        attended = _attend(q, k, v, torch.full((len(x), len(x)), -math.inf).triu(1))
        return attended @ w[f"{layer}self_attention.dense.weight"].T

    @torch.inference_mode()
    def see(self, image: np.ndarray) -> torch.Tensor:
        """[side, side, 3] uint8 -> [2 + tokens, hidden]: begin, patches, end."""
        w, vision = self.tensors, self.config["vision_config"]
        pixels = ((torch.from_numpy(image).float() / 255 - MEAN) / STD).permute(2, 0, 1)[None]
        embedding = f"{VISION}patch_embedding."
        kernel, bias = w[f"{embedding}proj.weight"], w[f"{embedding}proj.bias"]
        patches = conv2d(pixels, kernel, bias, vision["patch_size"])
        side = patches.shape[-1]
        x = torch.cat((w[f"{embedding}cls_embedding"], patches[0].flatten(1).T))
        x = x + w[f"{embedding}position_embedding.weight"]
        eps = vision["layer_norm_eps"]
        for i in range(vision["num_hidden_layers"]):
            block = f"transformer.layers.{i}."
            mixed = self._linear(x, f"{block}attention.query_key_value")
            q, k, v = mixed.unflatten(-1, (3, vision["num_heads"], -1)).unbind(1)
            attended = self._linear(_attend(q, k, v), f"{block}attention.dense")
            x = x + self._layer_norm(attended, f"{block}input_layernorm", eps)
            inner = self._linear(gelu(self._linear(x, f"{block}mlp.fc1")), f"{block}mlp.fc2")
            x = x + self._layer_norm(inner, f"{block}post_attention_layernorm", eps)
        square = x[1:].T.reshape(1, -1, side, side)
        pooled = conv2d(square, w[f"{VISION}conv.weight"], w[f"{VISION}conv.bias"], 2)
        tokens = self._adapter(pooled[0].flatten(1).T)
        seen = torch.cat((w[f"{VISION}boi"][0], tokens, w[f"{VISION}eoi"][0]))
        return seen / vision["scaling_factor"]

    def _adapter(self, x: torch.Tensor) -> torch.Tensor:
        names = ("linear_proj", "gate_proj", "dense_h_to_4h", "dense_4h_to_h")
        first, gate, plain, last = (
            self.tensors[f"{VISION}linear_proj.{name}.weight"].T for name in names
        )
        x = gelu(self._layer_norm(x @ first, "linear_proj.norm1", ADAPTER_EPS))
        return (silu(x @ gate) * (x @ plain)) @ last

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        name = f"{VISION}{name}"
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def _layer_norm(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        name = f"{VISION}{name}"
        scale, shift = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], scale, shift, eps)

    def greedy(
        self, ids: Sequence[int], image: np.ndarray | None, number: int
    ) -> list[tuple[int, float]]:
        """So many new tokens and their log probabilities."""
        all_ids = list(ids)
        answer: list[tuple[int, float]] = []
        while len(answer) < number:
            scores = self.logits(all_ids, image)[-1].log_softmax(0)
            token = int(scores.argmax())
            answer.append((token, float(scores[token])))
            all_ids.append(token)
        return answer


def _turned(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Neighbours (2 j, 2 j + 1) of the first elements of [T, heads, dim] turned by [T, j]."""
    width = 2 * angles.shape[1]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    one, two = x[..., 0:width:2], x[..., 1:width:2]
    turned = torch.stack((one * cos - two * sin, two * cos + one * sin), -1).flatten(-2)
    return torch.cat((turned, x[..., width:]), -1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """[T, heads, dim] each -> [T, heads * dim]."""
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
