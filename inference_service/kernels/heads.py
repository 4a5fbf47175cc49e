"""What happens to the heads of new tokens between projection and attention: the torch reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inference_service.kernels.attention import write_kv
from inference_service.kernels.rms_norm import rms_norm
from inference_service.kernels.rope import apply_rope


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The RMS norms of single heads.

    Attributes:
        query: [D], weight for queries.
        key: [D], weight for keys.
        eps: Added to the mean square.
    """

    query: torch.Tensor
    key: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Rotation:
    """The rotation of a step's queries and keys by their positions, on one axis or several (M-RoPE).

    Attributes:
        cos: [T, F] float32.
        sin: [T, F] float32.
        query_scale: [T] float32, factor of the rotated queries; None = 1.
        adjacent_pairs: As for `kernels.rope.apply_rope`.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    query_scale: torch.Tensor | None = None
    adjacent_pairs: bool = False

    def to(self, device: torch.device) -> Rotation:
        """A copy for layers on another device."""
        scale = None if self.query_scale is None else self.query_scale.to(device)
        return Rotation(self.cos.to(device), self.sin.to(device), scale, self.adjacent_pairs)


def rotate_and_write(
    heads: torch.Tensor,
    norms: HeadNorms | None,
    rotation: Rotation,
    caches: tuple[torch.Tensor, torch.Tensor],
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Normalises and rotates queries and keys, and writes keys and values into their slots, in place.

    Args:
        heads: [T, Hq + 2 * Hkv, D]: queries, keys and values of the new tokens of a layer.
        norms: The norms before the rotation, if there are any.
        rotation: The rotation, of T tokens.
        caches: Of keys and of values, [pages, page_size, Hkv, D] each, of the dtype of `heads`.
        slot_mapping: [T] int64, distinct.

    Returns:
        The queries [T, Hq, D].
    """
    k_cache, v_cache = caches
    kv_heads = k_cache.shape[2]
    q, k, v = heads.split_with_sizes((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    if norms is not None:
        q, k = rms_norm(q, norms.query, norms.eps), rms_norm(k, norms.key, norms.eps)
    cos, sin, pairs = rotation.cos, rotation.sin, rotation.adjacent_pairs
    q = apply_rope(q, cos, sin, adjacent_pairs=pairs)
    k = apply_rope(k, cos, sin, adjacent_pairs=pairs)
    if rotation.query_scale is not None:
        q = q * rotation.query_scale.to(q.dtype)[:, None, None]
    write_kv(k, v, k_cache, v_cache, slot_mapping)
    return q
