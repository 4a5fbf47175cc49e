"""Shared parts of the vision towers of Qwen2-VL and its successors: batch packing and transformer blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu

from inference_service.families.qwen_common.config import VISION_ROPE_THETA, QwenVisionSpec
from inference_service.kernels import packed, pieces
from inference_service.kernels.layers import Linear
from inference_service.kernels.ops import Ops
from inference_service.kernels.packed import Packed
from inference_service.kernels.pieces import Pieces
from inference_service.kernels.rope import inverse_frequencies, mrope_cos_sin


NORM_EPS = 1e-6

Grid = tuple[int, int, int]
"""(frames / temporal_patch_size, rows, columns) in patches."""

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines [N, D / 2] of the angles of N rows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of the patches of a batch, in batch order, on the CPU.

    Attributes:
        places: [2, N] int64: row and column of each patch.
        frames: [N] int64: index of each patch's frame, counted over all images.
    """

    places: torch.Tensor
    frames: torch.Tensor

    @classmethod
    def of(cls, grids: Sequence[Grid], merge_size: int) -> Layout:
        """The layout of concatenated images."""
        places = [patch_places(rows, columns, merge_size) for _, rows, columns in grids]
        times = [grid[0] for grid in grids]
        lengths = torch.tensor([len(place[0]) for place in places])
        lengths = lengths.repeat_interleave(torch.tensor(times))
        return cls(
            torch.cat([place.repeat(1, t) for place, t in zip(places, times, strict=True)], dim=1),
            torch.arange(len(lengths)).repeat_interleave(lengths),
        )


def patch_places(rows: int, columns: int, merge_size: int) -> torch.Tensor:
    """[2, rows * columns]: row and column of each patch; the patches of one token are adjacent."""
    index = torch.arange(rows * columns)
    index = index.view(rows // merge_size, merge_size, columns // merge_size, merge_size)
    index = index.transpose(1, 2).flatten()
    return torch.stack((index // columns, index % columns))


def segments_of(labels: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """The rows of each attention segment: those with the same label.

    Args:
        labels: [N] int64, on the CPU.
        device: Device of the result.

    Returns:
        For each length L of a segment [segments, L]: the rows of each.
    """
    order = torch.argsort(labels, stable=True)
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    return [
        order[starts[counts == length, None] + torch.arange(length)].to(device)
        for length in counts.unique().tolist()
    ]


Segments = Sequence[torch.Tensor] | Packed
"""From `segments_of`, or one after the other."""


def attention_segments(
    labels: torch.Tensor, vision: QwenVisionSpec, device: torch.device, ops: Ops
) -> Segments:
    """The attention segments of rows, for `Block.pieces`.

    Args:
        labels: [N] int64, on the CPU: rows with the same label are a segment. In ascending order, if `ops` packs.
        vision: The tower.
        device: Its device.
        ops: Its operations.
    """
    if not ops.packs:
        return segments_of(labels, device)
    _, lengths = torch.unique_consecutive(labels, return_counts=True)
    parts = packed.parts_of(lengths.tolist(), vision.hidden_size, device)
    return Packed(parts, ops.varlen_attention)


def axial_rope(places: torch.Tensor, head_dim: int) -> Rope:
    """Cosines and sines [N, head_dim / 2] of the angles: the first half by row, the second by column."""
    half = inverse_frequencies(head_dim // 2, VISION_ROPE_THETA, places.device)
    axes = torch.arange(2, device=places.device).repeat_interleave(len(half))
    return mrope_cos_sin(places, half.repeat(2), axes)


class PatchEmbed(nn.Module):
    """Embeds patches: a convolution with a stride equal to its kernel is a linear map."""

    def __init__(self, vision: QwenVisionSpec, *, bias: bool) -> None:
        super().__init__()
        self._flop_per_row = 2 * vision.patch_values * vision.hidden_size
        self.proj = Linear(vision.patch_values, vision.hidden_size, bias=bias)

    def pieces(self, patches: Sequence[torch.Tensor]) -> Pieces[torch.Tensor]:
        """The patches of each image [n, patch_values] -> [N, hidden]."""
        return pieces.rowwise(self.proj, torch.cat(list(patches)), self._flop_per_row)


class VisionAttention(nn.Module):
    """The projections of self-attention."""

    def __init__(self, vision: QwenVisionSpec, ops: Ops) -> None:
        super().__init__()
        self._ops = ops
        self._heads = (3, vision.num_heads, vision.head_dim)
        self.qkv = Linear(vision.hidden_size, 3 * vision.hidden_size)
        self.proj = Linear(vision.hidden_size, vision.hidden_size)

    def project(self, x: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values [n, heads, D] of rows [n, hidden] with these angles."""
        if self._ops.packs:
            _, heads, width = self._heads
            fused = self.qkv(x).view(-1, 3 * heads, width)
            rotated = self._ops.apply_rope(fused[:, : 2 * heads], *rope)  # both in one launch
            return rotated[:, :heads], rotated[:, heads:], fused[:, 2 * heads :]
        q, k, v = self.qkv(x).view(-1, *self._heads).unbind(1)
        return self._ops.apply_rope(q, *rope), self._ops.apply_rope(k, *rope), v


class Block(nn.Module):
    """Attention and MLP, each with a norm before it; the family supplies norms and MLP."""

    def __init__(
        self,
        vision: QwenVisionSpec,
        norm: Callable[[int], nn.Module],
        mlp: nn.Module,
        ops: Ops,
    ) -> None:
        super().__init__()
        self.norm1 = norm(vision.hidden_size)
        self.attn = VisionAttention(vision, ops)
        self.norm2 = norm(vision.hidden_size)
        self.mlp = mlp

    def pieces(self, x: torch.Tensor, rope: Rope, segments: Segments) -> Pieces[torch.Tensor]:
        """[N, hidden] -> [N, hidden]; attention is limited to segments, from `attention_segments`."""
        cos, sin = rope

        def project(rows: slice) -> tuple[torch.Tensor, ...]:
            return self.attn.project(self.norm1(x[rows]), (cos[rows], sin[rows]))

        def finish(rows: torch.Tensor | slice, attended: torch.Tensor) -> torch.Tensor:
            y = x[rows] + self.attn.proj(attended)
            out: torch.Tensor = y + self.mlp(self.norm2(y))
            return out

        if isinstance(segments, Packed):
            return packed.block(x, segments, project, finish)
        return pieces.block(x, segments, project, finish)


class Merger(nn.Module):
    """Merges merge_size x merge_size patches into one token, as in Qwen2-VL and Qwen2.5-VL."""

    def __init__(self, vision: QwenVisionSpec, norm: nn.Module) -> None:
        super().__init__()
        self._merged_size = vision.merged_size
        self.norm = norm
        self.fc1 = Linear(vision.merged_size, vision.merged_size)
        self.fc2 = Linear(vision.merged_size, vision.output_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, hidden] -> [N / merge_size^2, output_size]."""
        out: torch.Tensor = self.fc2(gelu(self.fc1(self.norm(x).view(-1, self._merged_size))))
        return out


def merged_in_pieces(
    merger: nn.Module, x: torch.Tensor, vision: QwenVisionSpec
) -> Pieces[torch.Tensor]:
    """[N, hidden] -> [N / merge_size^2, output_size], by either kind of merger."""

    def merge(rows: torch.Tensor) -> torch.Tensor:
        merged: torch.Tensor = merger(rows.view(-1, vision.hidden_size))
        return merged

    flop_per_row = 2 * vision.merged_size * (vision.merged_size + vision.output_size)
    return pieces.rowwise(merge, x.view(-1, vision.merged_size), flop_per_row)


def layer_norm(width: int) -> nn.Module:
    """The norm of Qwen2-VL and Qwen3-VL."""
    return nn.LayerNorm(width, eps=NORM_EPS)


def split_images(
    tokens: torch.Tensor, grids: Sequence[Grid], merge_size: int
) -> list[torch.Tensor]:
    """The tokens of each image, as views."""
    lengths = [frames * rows * columns // merge_size**2 for frames, rows, columns in grids]
    return list(torch.split(tokens, lengths))
