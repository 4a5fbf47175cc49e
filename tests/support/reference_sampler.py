"""The sampler as it was before slots: every step, it builds everything from the lists of tokens.

The reference for `engine.sampler`: both must choose the same tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
import math

import torch
from torch import Tensor

from inference_service.engine_protocol.messages import SamplingParams


MIN_TEMPERATURE = 1e-5
"""A row with a lower temperature is greedy, as the division would overflow (vLLM's limit)."""

_MASK_64 = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """The sampler's input for one sequence.

    Attributes:
        params: Sampling parameters.
        prompt: Ids of the prompt.
        answer: Ids of the answer so far.
        choice_index: Index of the answer among those of its request.
        is_masked: A constraint applies to the next token.
        awaits_mask: A constraint applies later, so that the answer must not end before.
    """

    params: SamplingParams
    prompt: Sequence[int]
    answer: Sequence[int]
    choice_index: int = 0
    is_masked: bool = False
    awaits_mask: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is chosen."""
        return self.params.temperature < MIN_TEMPERATURE

    @property
    def banned(self) -> tuple[int, ...]:
        """End tokens that are excluded: until `min_tokens` is reached, and where a constrained answer must go on."""
        params = self.params
        is_early = len(self.answer) < params.min_tokens
        goes_on = self.is_masked if params.ignore_eos else is_early
        own = params.eos_token_ids if goes_on or self.awaits_mask else ()
        return own + params.stop_token_ids if is_early else own

    @property
    def is_penalised(self) -> bool:
        """Whether any penalty for previous tokens applies."""
        params = self.params
        return (
            params.repetition_penalty != 1.0
            or params.frequency_penalty != 0.0
            or params.presence_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class RowMask:
    """The permitted tokens of some rows, one set for each."""

    rows: Sequence[int]
    permitted: Sequence[frozenset[int]]

    def apply(self, logits: Tensor, unbanned: Tensor) -> Tensor:
        """Masks the rows, as `TokenMask`."""
        logits = logits.clone()
        for row, permitted in zip(self.rows, self.permitted, strict=True):
            forbidden = [i for i in range(logits.shape[1]) if i not in permitted]
            logits[row, forbidden] = -math.inf
            if logits[row].max() == -math.inf:
                logits[row] = unbanned[row]
                logits[row, forbidden] = -math.inf
        return logits


def sample(logits: Tensor, rows: Sequence[SamplingRow], mask: RowMask | None = None) -> Tensor:
    """Choose one token per row.

    Args:
        logits: [R, V] float32 from the model; not changed.
        rows: R rows.
        mask: The permitted tokens of the rows that are masked; None if none is.

    Returns:
        [R] int64 on the device of `logits`.
    """
    unbanned = logits
    logits = _apply_bias_and_bans(logits, rows)
    logits = _apply_penalties(logits, rows)
    if mask is not None:
        logits = mask.apply(logits, unbanned)
    greedy = logits.argmax(dim=-1)
    if all(row.is_greedy for row in rows):
        return greedy
    # Greedy rows are computed too, with temperature 1 and a single candidate, and are replaced at the end.
    temperatures = [1.0 if row.is_greedy else row.params.temperature for row in rows]
    logits = logits / _column(temperatures, logits)
    kept = logits >= _minimum_logits(logits, rows)
    noise_keys = [(row.params.seed, row.choice_index, len(row.answer)) for row in rows]
    drawn = (logits + _noise_where(kept, noise_keys)).argmax(dim=-1)
    is_greedy = torch.tensor([row.is_greedy for row in rows], device=logits.device)
    return torch.where(is_greedy, greedy, drawn)


def gumbel_noise(keys: Sequence[tuple[int, int, int]], rows: Tensor, token_ids: Tensor) -> Tensor:
    """Gumbel noise that depends only on (seed, choice, position) and the token id.

    Adding it to logits and taking the maximum samples from their softmax (Gumbel-max). The triple is hashed to a 64-bit
    key; its halves are mixed with the token ids in two rounds of Wellons' `lowbias32`.

    Args:
        keys: (seed, choice, position) of each row of the batch.
        rows: int64, rows of the batch.
        token_ids: int64, of a shape that broadcasts with `rows`.

    Returns:
        float32 of the common shape.
    """
    mixed = [_mix_key(key) for key in keys]
    low = torch.tensor([_int32(key) for key in mixed], dtype=torch.int32, device=rows.device)
    high = torch.tensor([_int32(key >> 32) for key in mixed], dtype=torch.int32, device=rows.device)
    bits = token_ids.int() ^ low[rows]
    _lowbias32_(bits)
    bits ^= high[rows]
    _lowbias32_(bits)
    # 31 bits to u in (0, 1). Small u, which win, keep their resolution; u = 1 would be infinite noise.
    minus_u = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(-(2.0**-31)).clamp_(min=-1 + 2.0**-24)
    return minus_u.log1p_().neg_().log_().neg_()


def _noise_where(kept: Tensor, keys: Sequence[tuple[int, int, int]]) -> Tensor:
    """Noise for the tokens that are kept, minus infinity for the others: [R, V] float32."""
    # Filters usually keep few of 150,000 tokens. Counting them would synchronise a GPU, so it computes all.
    if kept.device.type == "cpu" and 4 * kept.count_nonzero() < kept.numel():
        rows, token_ids = kept.nonzero(as_tuple=True)
        noise = torch.full(kept.shape, -math.inf)
        return noise.index_put_((rows, token_ids), gumbel_noise(keys, rows, token_ids))
    rows = torch.arange(kept.shape[0], device=kept.device).unsqueeze(-1)
    token_ids = torch.arange(kept.shape[1], device=kept.device)
    return gumbel_noise(keys, rows, token_ids).masked_fill(~kept, -math.inf)


def _apply_bias_and_bans(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    entries = [
        (index, token_id, value)
        for index, row in enumerate(rows)
        for token_id, value in (
            *row.params.logit_bias,
            *((token_id, -math.inf) for token_id in row.banned),
        )
    ]
    if not entries:
        return logits
    indices, token_ids, values = zip(*entries, strict=True)
    places = (
        torch.tensor(indices, device=logits.device),
        torch.tensor(token_ids, device=logits.device),
    )
    bias = torch.tensor(values, dtype=logits.dtype, device=logits.device)
    return logits.index_put(places, bias, accumulate=True)


def _apply_penalties(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Counts tokens anew in every step: counts kept as state would have to survive preemption and aborts."""
    places: list[int] = []
    token_ids: list[int] = []
    counts: list[int] = []
    for index, row in enumerate(rows):
        if row.is_penalised:
            answer = Counter(row.answer)
            seen = list({*row.prompt, *row.answer})
            places += [index] * len(seen)
            token_ids += seen
            counts += [answer[token_id] for token_id in seen]
    if not places:
        return logits
    where = (
        torch.tensor(places, device=logits.device),
        torch.tensor(token_ids, device=logits.device),
    )

    def of_each(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=logits.dtype, device=logits.device)[where[0]]

    repetition = of_each([row.params.repetition_penalty for row in rows])
    frequency = of_each([row.params.frequency_penalty for row in rows])
    presence = of_each([row.params.presence_penalty for row in rows])
    count = torch.tensor(counts, dtype=logits.dtype, device=logits.device)
    part = logits[where]
    part = torch.where(part > 0, part / repetition, part * repetition)
    part = part - frequency * count - presence * (count > 0)
    return logits.index_put(where, part)


def _minimum_logits(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """The minimum logit [R, 1] of each row that passes min-p, top-k and top-p."""
    maximum = logits.amax(dim=-1, keepdim=True)
    minimum = maximum + _column([_log_min_p(row) for row in rows], logits)
    vocab_size = logits.shape[-1]
    sorted_rows = [
        index
        for index, row in enumerate(rows)
        if not row.is_greedy and (0 < row.params.top_k < vocab_size or row.params.top_p < 1)
    ]
    if not sorted_rows:
        return minimum
    params = [rows[index].params for index in sorted_rows]
    top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
    places = torch.tensor(sorted_rows, device=logits.device)
    # In descending order, as many as the largest top_k needs.
    values = logits[places].topk(max(top_k), dim=-1).values
    ranks = torch.arange(values.shape[-1], device=logits.device)
    kept = (values >= minimum[places]) & (ranks < _column(top_k, logits))
    weights = torch.where(kept, (values - values[:, :1]).exp(), 0.0).double()
    mass = weights.cumsum(dim=-1)
    top_p = _column([p.top_p for p in params], logits).double()
    # A token stays if those before it have not reached top_p; 1 is off, regardless of rounding.
    kept &= (mass - weights < top_p * mass[:, -1:]) | (top_p >= 1)
    kept[:, 0] = True
    return minimum.index_copy(0, places, values.masked_fill(~kept, math.inf).amin(-1, keepdim=True))


def _log_min_p(row: SamplingRow) -> float:
    """The minimum logit relative to the maximum; 0 for a greedy row."""
    if row.is_greedy:
        return 0.0
    return math.log(row.params.min_p) if row.params.min_p > 0 else -math.inf


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _mix_key(key: tuple[int, int, int]) -> int:
    """Hashes (seed, choice, position) to 64 bits with SplitMix64."""
    state = 0
    for number in key:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state


def _int32(bits: int) -> int:
    """The low 32 bits as a signed integer."""
    return ((bits & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _lowbias32_(bits: Tensor) -> None:
    """Chris Wellons' 32-bit integer hash, in place on int32 with wrapping products; shifts fill with zeros."""
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
    bits *= 0x7FEB352D
    bits ^= (bits >> 15).bitwise_and_(0x1FFFF)
    bits *= _int32(0x846CA68B)
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
