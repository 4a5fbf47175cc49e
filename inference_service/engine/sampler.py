"""Samples the next tokens of a batch from logits, on the device.

Order (as vLLM's sampler): logit bias, end tokens masked by `min_tokens`, repetition, frequency and presence penalty,
the mask of a constraint, temperature, min-p, top-k, top-p, choice. A row's result depends on that row alone, never on
the batch around it: filters are minimum logits (ties stay together), and noise is a hash of (seed, choice, position,
token id).

Nothing here waits for a GPU. On a CPU, where looking at intermediate results costs nothing, rows are drawn from the few
tokens that can pass their filters, or can win; the results are the same.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference_service.engine.cpu_choice import MANY, argmax, argmax_with_noise
from inference_service.engine.masks import TokenMask
from inference_service.engine.sampling_table import Selection, Shape
from inference_service.kernels.choice import gumbel_noise
from inference_service.kernels.filters import lowest_of_sorted
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.penalties import Penalties
from inference_service.kernels.slot_state import SlotState


_WORTH_LOOKING: Final = 1 << 15
"""Logits from which the detour by a table of few tokens is shorter on a CPU."""
_CHUNK: Final = 64
_WIDEST_TABLE: Final = 4096
"""Tokens of a row that may pass its filters, up to which it is drawn together with others."""


def sample_(
    logits: Tensor,
    selection: Selection,
    shape: Shape,
    state: SlotState,
    mask: TokenMask | None = None,
    *,
    looks: bool | None = None,
    ops: Ops = REFERENCE,
) -> Tensor:
    """Choose one token per row.

    Args:
        logits: [R, V] float32, contiguous, from the model; undefined afterwards.
        selection: The settings of the R rows, on the device.
        shape: What is known of them on the host.
        state: The state of the slots before this token.
        mask: The permitted tokens of the rows that are masked; None if none is.
        looks: Look at intermediate results, and so wait for the device; None = on a CPU, if it is worth it.
        ops: The operations of the device.

    Returns:
        [R] int64 on the device of `logits`.
    """
    unbanned = None if mask is None else logits.index_select(0, mask.rows)
    if len(selection.bias_rows):
        places = (selection.bias_rows, selection.bias_ids)
        logits.index_put_(places, selection.bias_values, accumulate=True)
    if len(selection.penalty_rows):
        ops.penalise(logits, _penalties(selection, shape), state)
    if mask is not None and unbanned is not None:
        mask.apply_(logits, unbanned)
    num_drawn = len(selection.drawn_rows)
    if num_drawn == len(logits):
        return _draw(logits, selection, shape, ops, looks=looks)
    greedy = argmax(logits) if logits.device.type == "cpu" else logits.argmax(dim=-1)
    if num_drawn:
        rows = logits.index_select(0, selection.drawn_rows)
        drawn = _draw(rows, selection, shape, ops, looks=looks)
        greedy.index_copy_(0, selection.drawn_rows, drawn)
    return greedy


def _penalties(selection: Selection, shape: Shape) -> Penalties:
    return Penalties(
        selection.penalty_rows,
        selection.penalty_slots,
        selection.count_bases,
        selection.repetition,
        selection.frequency,
        selection.presence,
        shape.history_width,
        shape.counts,
    )


def _draw(logits: Tensor, rows: Selection, shape: Shape, ops: Ops, *, looks: bool | None) -> Tensor:
    """Draws from [D, V], which is overwritten."""
    logits.div_(rows.temperature.unsqueeze(-1))
    if looks is None:
        looks = logits.device.type == "cpu" and logits.numel() >= _WORTH_LOOKING
    if not looks:
        return _draw_from_all(logits, rows, shape, ops)
    if not len(rows.plain):
        return _draw_from_few(logits, rows, shape, slice(None))
    if not len(rows.filtered):
        return _choose(logits, rows.noise_low, rows.noise_high, ops)
    drawn = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    low, high = rows.noise_low[rows.plain], rows.noise_high[rows.plain]
    drawn[rows.plain] = _choose(logits[rows.plain], low, high, ops)
    drawn[rows.filtered] = _draw_from_few(logits[rows.filtered], rows, shape, rows.filtered)
    return drawn


def _choose(logits: Tensor, low: Tensor, high: Tensor, ops: Ops) -> Tensor:
    """Draws from all tokens of [D, V]; on a CPU without noise for each of them."""
    if ops is REFERENCE and logits.device.type == "cpu":
        return argmax_with_noise(logits, low, high)
    return ops.choose_tokens(logits, None, low, high)


def _draw_from_all(logits: Tensor, rows: Selection, shape: Shape, ops: Ops) -> Tensor:
    """Draws from [D, V] without looking: all tokens get noise."""
    minimum = _minimum(logits, rows, shape, ops) if len(rows.filtered) else None
    return ops.choose_tokens(logits, minimum, rows.noise_low, rows.noise_high)


def _minimum(logits: Tensor, rows: Selection, shape: Shape, ops: Ops) -> Tensor:
    """The minimum logit [D, 1] of each row; without a kernel for it, the tokens of some rows are sorted."""
    if ops.lowest_kept is not REFERENCE.lowest_kept:
        return ops.lowest_kept(logits, rows.log_min_p, rows.top_k, rows.top_p)
    minimum: Tensor = logits.amax(dim=-1, keepdim=True) + rows.log_min_p.unsqueeze(-1)
    for which, width in ((rows.narrow, shape.narrow_width), (rows.wide, logits.shape[1])):
        if not len(which):
            continue
        part = logits if len(which) == len(logits) else logits.index_select(0, which)
        cut = lowest_of_sorted(
            part.topk(width, dim=-1).values,
            minimum.index_select(0, which),
            rows.top_k.index_select(0, which),
            rows.top_p.index_select(0, which),
        )
        minimum.index_copy_(0, which, cut)
    return minimum


def _draw_from_few(logits: Tensor, rows: Selection, shape: Shape, which: Tensor | slice) -> Tensor:
    """Draws from [F, V], those of `rows` that have a filter: from a table of the tokens that may pass it.

    Rows of which many may pass are drawn one by one, as the table would be as wide for all.
    """
    top_k, top_p = rows.top_k[which], rows.top_p[which]
    maximum = logits.amax(dim=-1, keepdim=True)
    minimum = maximum + rows.log_min_p[which].unsqueeze(-1)
    bound = maximum + rows.log_bound[which].unsqueeze(-1)
    if shape.cuts_rank:
        bound = torch.maximum(bound, _rank_bound(logits, top_k))
    total = torch.full(minimum.shape, math.nan, dtype=torch.float64)
    if shape.cuts_mass:
        weights = (logits - maximum).exp_().masked_fill_(logits < minimum, 0.0)
        mass = weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
        total = torch.where((top_k == logits.shape[1]).unsqueeze(-1), mass, math.nan)
    few = _Few(
        *(logits, bound, minimum, top_k, top_p, total),
        *(rows.noise_low[which], rows.noise_high[which]),
    )
    is_wide = (logits >= bound).sum(dim=-1) > _WIDEST_TABLE
    if not is_wide.any():
        return _draw_from_table(few)
    drawn = torch.empty(len(logits), dtype=torch.int64)
    narrow = is_wide.logical_not().nonzero().squeeze(-1)
    if len(narrow):
        drawn[narrow] = _draw_from_table(few.part(narrow))
    for row in is_wide.nonzero():
        drawn[row] = _draw_from_row(few.part(row))
    return drawn


class _Few(NamedTuple):
    """F rows of which the tokens that reach a bound may pass the filters.

    Attributes:
        logits: [F, V].
        bound: [F, 1].
        minimum: [F, 1], and the next three as for `lowest_of_sorted`.
        top_k: [F].
        top_p: [F].
        total: [F, 1].
        low: [F], and the next as for `gumbel_noise`.
        high: [F].
    """

    logits: Tensor
    bound: Tensor
    minimum: Tensor
    top_k: Tensor
    top_p: Tensor
    total: Tensor
    low: Tensor
    high: Tensor

    def part(self, rows: Tensor) -> _Few:
        """Some of the rows."""
        return _Few(*(column[rows] for column in self))

    def lowest_kept(self, ordered: Tensor) -> Tensor:
        """The logits [F, 1] that those that pass reach, given what may pass in descending order."""
        return lowest_of_sorted(ordered, self.minimum, self.top_k, self.top_p, self.total)


def _draw_from_table(few: _Few) -> Tensor:
    """Draws from a table of all rows' tokens."""
    values, token_ids = _table(few.logits, few.bound)
    cut = few.lowest_kept(values.sort(dim=-1, descending=True).values)
    noise = gumbel_noise(few.low.unsqueeze(-1), few.high.unsqueeze(-1), token_ids)
    best = noise.add_(values).masked_fill_(~(values >= cut), -math.inf).argmax(-1, keepdim=True)
    return token_ids.gather(1, best).squeeze(-1)


def _draw_from_row(few: _Few) -> Tensor:
    """Draws from one row of which many tokens may pass."""
    # Tens of times faster than torch's sort, which is stable.
    ordered = np.sort(few.logits[few.logits >= few.bound].numpy())[::-1].copy()
    cut = few.lowest_kept(torch.from_numpy(ordered).unsqueeze(0))
    kept = few.logits.masked_fill(~(few.logits >= cut), -math.inf)
    return argmax_with_noise(kept, few.low, few.high)


def _rank_bound(logits: Tensor, top_k: Tensor) -> Tensor:
    """A logit [F, 1] that `top_k` or more tokens of each row reach.

    The k-th largest maximum of any disjoint chunks is one; minus infinity where there are fewer chunks.
    """
    chunk = _CHUNK if logits.shape[1] >= MANY else 1
    count = logits.shape[1] // chunk
    maxima = logits[:, : count * chunk].view(len(logits), count, chunk).amax(dim=-1)
    reached = top_k <= count
    width = int(torch.where(reached, top_k, 1).amax())
    place = torch.where(reached, top_k, 1).unsqueeze(-1) - 1
    best: Tensor = maxima.topk(width, dim=-1).values.gather(1, place)
    return best.masked_fill_(~reached.unsqueeze(-1), -math.inf)


def _table(logits: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that reach their row's bound [F, 1], in order of their ids: logits and ids, [F, widest] each."""
    rows, token_ids = (logits >= bound).nonzero(as_tuple=True)
    counts = rows.bincount(minlength=len(logits))
    place = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    width = max(1, int(counts.amax()))
    values = torch.full((len(logits), width), -math.inf)
    ids = torch.zeros(len(logits), width, dtype=torch.int64)
    values[rows, place] = logits[rows, token_ids]
    ids[rows, place] = token_ids
    return values, ids
