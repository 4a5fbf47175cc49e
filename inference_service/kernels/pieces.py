"""Computes a vision tower in pieces of bounded work, between which the engine does other work.

How a tower is cut depends on sizes and on the device, never on what is computed in between. So the result is the same,
bit by bit, whether the pieces follow each other at once or over many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Final, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from inference_service.progress import advance


T = TypeVar("T")

Pieces: TypeAlias = Generator[None, None, T]
"""Work that stops after each piece, and returns its result after the last."""

PIECE_FLOP: Final = {"cpu": 1e10, "cuda": 5e11}
"""Floating-point operations of a piece by type of device: a tenth of a second on two cores, milliseconds on a GPU."""


def run(pieces: Pieces[T]) -> T:
    """The result of all pieces, one after the other."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result
        advance()


class TowerInPieces(nn.Module):
    """A vision tower that can be computed in pieces."""

    def pieces(
        self, patches: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> Pieces[list[Tensor]]:
        """What `forward` does, in pieces."""
        raise NotImplementedError

    def forward(
        self, patches: Sequence[Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> list[Tensor]:
        """Encodes images.

        Args:
            patches: For each image [n, patch_values] in the dtype of the weights, in the order of `Patchifier`.
            grids: For each image (frames, rows, columns) in patches.

        Returns:
            For each image [num_tokens, output_size], views of one tensor.
        """
        return run(self.pieces(patches, grids))


def rows_of_piece(flop_per_row: float, device: torch.device) -> int:
    """How many rows of this much work are one piece; one at least."""
    return max(1, int(PIECE_FLOP[device.type] // flop_per_row))


def flop_of_row(width: int, length: int) -> float:
    """Floating-point operations of a row of a transformer block that asks this many others."""
    return 24 * width**2 + 4 * length * width  # four matrices of attention, eight of a usual MLP


def rowwise(function: Callable[[Tensor], Tensor], x: Tensor, flop_per_row: float) -> Pieces[Tensor]:
    """A function that treats the rows of x [N, ...] independently."""
    parts = []
    for rows in torch.split(x, rows_of_piece(flop_per_row, x.device)):
        parts.append(function(rows))
        yield
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def block(
    x: Tensor,
    segments: Sequence[Tensor],
    project: Callable[[slice], tuple[Tensor, ...]],
    finish: Callable[[Tensor, Tensor], Tensor],
) -> Pieces[Tensor]:
    """A transformer block: attention within segments, and what comes before and after it row by row.

    Args:
        x: [N, hidden].
        segments: For each length L of a segment [S, L] int64: the rows of each. Every row is in one segment.
        project: Queries, keys and values, each [n, H, D], of a range of n rows.
        finish: The block's output [n, hidden] for n rows, of their numbers [n] and attention [n, H * D].

    Returns:
        [N, hidden].
    """
    limit = rows_of_piece(flop_of_row(x.shape[1], 0), x.device)
    projected = []
    for start in range(0, len(x), limit):
        projected.append(project(slice(start, start + limit)))
        yield
    q, k, v = (torch.cat(parts) for parts in zip(*projected, strict=True))
    del projected
    out = torch.empty_like(x)
    for segment in segments:
        limit = rows_of_piece(flop_of_row(x.shape[1], segment.shape[1]), x.device)
        for asking, asked in _cuts(segment, limit):
            keys, values = k[asked].transpose(1, 2), v[asked].transpose(1, 2)
            for rows in asking:
                queries = q[rows].transpose(1, 2)
                attended = scaled_dot_product_attention(queries, keys, values)
                of_rows = rows.flatten()
                out[of_rows] = finish(of_rows, attended.transpose(1, 2).flatten(2).flatten(0, 1))
                yield
    return out


def _cuts(segments: Tensor, limit: int) -> Iterator[tuple[Sequence[Tensor], Tensor]]:
    """Segments [S, L] in pieces of at most `limit` rows: the rows that ask [n, l], and those that they ask [n, L]."""
    length = segments.shape[1]
    for some in torch.split(segments, max(1, limit // length)):
        yield torch.split(some, min(limit, length), dim=1), some
