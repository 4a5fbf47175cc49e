"""Transformer blocks over images of different sizes in one batch, for devices with attention of different lengths.

As `kernels.pieces`, but the segments lie one after the other: nothing is gathered, and all segments of a piece are one
call. Whole segments make up a piece; one that is too large for a piece is cut into ranges of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from inference_service.kernels import pieces
from inference_service.kernels.pieces import Pieces
from inference_service.kernels.varlen import Spans


Attend = Callable[[Tensor, Tensor, Tensor, Spans], Tensor]
"""The signature of `kernels.varlen.varlen_attention`."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that attend in one call.

    Attributes:
        rows: The rows that ask.
        keys: The rows that they ask: all of their segments.
        spans: The segments, of these rows.
    """

    rows: slice
    keys: slice
    spans: Spans


@dataclass(frozen=True, slots=True)
class Packed:
    """Segments one after the other.

    Attributes:
        parts: In order, of all rows.
        attend: Attention within segments.
    """

    parts: Sequence[Part]
    attend: Attend


def parts_of(lengths: Sequence[int], width: int, device: torch.device) -> list[Part]:
    """Cuts segments into parts for pieces.

    Args:
        lengths: Rows of each segment, in order.
        width: Of the residual stream, for the cost of a row.
        device: The device.
    """
    parts: list[Part] = []
    run: list[int] = []
    start = 0
    cost = 0.0
    for length in lengths:
        flop_per_row = pieces.flop_of_row(width, length)
        limit = pieces.rows_of_piece(flop_per_row, device)
        if run and cost + length * flop_per_row > pieces.PIECE_FLOP[device.type]:
            parts.append(_whole(start, run, device))
            start, run, cost = start + sum(run), [], 0.0
        if length <= limit:
            run.append(length)
            cost += length * flop_per_row
            continue
        keys = slice(start, start + length)
        for first in range(0, length, limit):
            count = min(limit, length - first)
            spans = Spans(_starts([count], device), _starts([length], device), count, length)
            parts.append(Part(slice(start + first, start + first + count), keys, spans))
        start += length
    if run:
        parts.append(_whole(start, run, device))
    return parts


def _whole(start: int, lengths: Sequence[int], device: torch.device) -> Part:
    rows = slice(start, start + sum(lengths))
    starts = _starts(lengths, device)
    return Part(rows, rows, Spans(starts, starts, max(lengths), max(lengths)))


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)


def block(
    x: Tensor,
    segments: Packed,
    project: Callable[[slice], tuple[Tensor, ...]],
    finish: Callable[[slice, Tensor], Tensor],
) -> Pieces[Tensor]:
    """A transformer block: as `pieces.block`, with rows in the order of their segments.

    Args:
        x: [N, hidden].
        segments: Those of all rows.
        project: Queries, keys and values, each [n, H, D], of a range of n rows.
        finish: The block's output [n, hidden] for a range of n rows, of their attention [n, H * D].

    Returns:
        [N, hidden].
    """
    limit = pieces.rows_of_piece(pieces.flop_of_row(x.shape[1], 0), x.device)
    projected = []
    for start in range(0, len(x), limit):
        projected.append(project(slice(start, start + limit)))
        yield
    q, k, v = (_joined(ranges) for ranges in zip(*projected, strict=True))
    del projected
    out = []
    for part in segments.parts:
        attended = segments.attend(q[part.rows], k[part.keys], v[part.keys], part.spans)
        out.append(finish(part.rows, attended.flatten(1)))
        yield
    return _joined(out)


def _joined(ranges: Sequence[Tensor]) -> Tensor:
    return ranges[0] if len(ranges) == 1 else torch.cat(list(ranges))
