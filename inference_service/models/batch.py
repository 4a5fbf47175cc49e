"""The packed inputs of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inference_service.kernels.attention import AttentionMetadata


KVCache = torch.Tensor | Sequence[torch.Tensor]
"""For each layer [2, pages, page_size, Hkv, D]: one tensor, or a list if layers are on several devices."""


@dataclass(slots=True)
class ForwardBatch:
    """The new tokens of a step, with concatenated sequences; all tensors are on the model's device.

    The tensors may be views of buffers that a later step overwrites: they are valid for one step only.

    Attributes:
        token_ids: [T] int64.
        positions: [3, T] int64: position on the time, height and width axis.
        attention: The places of the tokens in the KV cache.
        image_rows: [M] int64: distinct rows of the batch that are image tokens; None = no images.
        image_embeddings: [M, hidden * (1 + D)] for these rows, from `encode_images`, D = number of deepstack
            levels; None = no images.
        rope_levels: [T] int64: level of each token's sequence, if frequencies depend on it; None = 0.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionMetadata
    image_rows: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    rope_levels: torch.Tensor | None = None
