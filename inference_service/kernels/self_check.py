"""Runs a kernel once on small inputs on the device of a model, and compares it with its torch reference.

What cannot be caught here: an access to an illegal address leaves every later call of CUDA in this process failing, a
kernel that never ends runs into `--engine-start-timeout-s`, and a compiler that aborts takes the process with it. Then
the engine does not start until the operator sets `--gpu-kernels off`. Variants of a kernel for other sizes than those
of the decoder, such as the widths of a vision tower, are not checked; the step of maximum size that measures the memory
compiles them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference_service.kernels.attention import AttentionMetadata, new_kv_cache, write_kv
from inference_service.kernels.heads import HeadNorms, Rotation
from inference_service.kernels.penalties import Penalties
from inference_service.kernels.skinny_linear import MAX_ROWS, SPLITS
from inference_service.kernels.slot_state import SampledRows, SlotState, StateUpdate
from inference_service.kernels.varlen import Spans


LIMITS = {torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Largest difference by dtype, relative to the largest value of the reference.

They leave room for the reference's own roundings, TF32 among them; a wrong row, mask or page differs by far more.
"""
_PAGE_SIZE = 16
_BATCHES = (((1, 1), (33, 1)), ((17, 1), (600, 1)), ((1, 1), (70, 40), (600, 3)))
"""(context, new tokens) of sequences: decode, with contexts that are short and that are split, and prefill."""

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and kind of a decoder, for which kernels are compiled.

    Attributes:
        num_heads: As of `model_spec.DecoderSpec`, like the next five.
        num_kv_heads: See there.
        head_dim: See there.
        hidden_size: See there.
        intermediate_size: See there.
        vocab_size: See there.
        rotated: Elements of a head that are rotated.
        adjacent_pairs: As of `model_spec.RopeSpec`.
        qk_norm: As of `model_spec.DecoderSpec`.
        scaled_queries: Rotated queries are scaled.
        vision_heads: Number and width of the heads of the vision tower.
    """

    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    hidden_size: int = 96
    intermediate_size: int = 160
    vocab_size: int = 5000
    rotated: int = 64
    adjacent_pairs: bool = False
    qk_norm: bool = True
    scaled_queries: bool = True
    vision_heads: tuple[int, int] = (2, 40)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs for a kernel, the same ones for the same arguments."""

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype

    def noise(self, *shape: int) -> Tensor:
        """Normal values."""
        generator = torch.Generator().manual_seed(math.prod(shape))
        return torch.randn(shape, generator=generator).to(self.device, self.dtype)

    def heads(self, tokens: int) -> Sequence[Tensor]:
        """Queries, keys and values of new tokens, parts of one tensor as in a model."""
        split = (self.sizes.num_heads, self.sizes.num_kv_heads, self.sizes.num_kv_heads)
        return self.noise(tokens, sum(split), self.sizes.head_dim).split_with_sizes(split, dim=1)

    def caches(self, pages: int, value: float) -> Tensor:
        """Keys and values of one layer, filled with a value."""
        shape = (1, pages, _PAGE_SIZE, self.sizes.num_kv_heads, self.sizes.head_dim)
        return new_kv_cache(*shape, dtype=self.dtype, device=self.device)[0].fill_(value)


def _rotate_and_write(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    sizes = inputs.sizes
    slots = torch.tensor([3, 17, 30, 0, 31]).to(inputs.device)
    width = sum((sizes.num_heads, 2 * sizes.num_kv_heads))
    heads = inputs.noise(len(slots), width, sizes.head_dim)
    angles = inputs.noise(len(slots), sizes.rotated // 2).float()
    scale = inputs.noise(len(slots)).float() if sizes.scaled_queries else None
    rotation = Rotation(angles.cos(), angles.sin(), scale, sizes.adjacent_pairs)
    norms = None
    if sizes.qk_norm:
        query, key = inputs.noise(2, sizes.head_dim)
        norms = HeadNorms(query, key, 1e-6)
    caches = inputs.caches(2, -1.0)
    q = run(heads, norms, rotation, (caches[0], caches[1]), slots)
    return [q, caches]


def _paged_attention(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    return [_attend(run, inputs, batch) for batch in _BATCHES]


def _attend(run: Run, inputs: Inputs, batch: Sequence[tuple[int, int]]) -> Tensor:
    """Attention of a batch; what no sequence owns holds NaN, page 0 among it, which pads the table."""
    contexts, news = (np.array(column, np.int32) for column in zip(*batch, strict=True))
    starts = np.array([0, *accumulate(news)], np.int32)
    counts = [-(-context // _PAGE_SIZE) for context, _ in batch]
    caches = inputs.caches(sum(counts) + 1, math.nan)
    free = list(range(1, sum(counts) + 1))
    table = torch.zeros(len(batch), max(counts), dtype=torch.int32)
    slots = []
    for row, count, (context, new) in zip(table, counts, batch, strict=True):
        row[:count] = torch.tensor([free.pop() for _ in range(count)])
        places = torch.arange(context)
        own = row[places // _PAGE_SIZE].long() * _PAGE_SIZE + places % _PAGE_SIZE
        _, k, v = inputs.heads(context)
        write_kv(k, v, caches[0], caches[1], own.to(inputs.device))
        slots.append(own[context - new :])
    meta = AttentionMetadata(
        slot_mapping=torch.cat(slots).to(inputs.device),
        page_table=table.to(inputs.device),
        query_start=torch.from_numpy(starts).to(inputs.device),
        context_lens=torch.from_numpy(contexts).to(inputs.device),
        host_query_start=starts,
        host_context_lens=contexts,
        max_query_len=int(news.max()),
        max_context_len=int(contexts.max()),
    )
    q, _, _ = inputs.heads(int(starts[-1]))
    result: Tensor = run(q, caches[0], caches[1], meta, inputs.sizes.head_dim**-0.5)
    return result


def _rms_norm(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    widths = (inputs.sizes.hidden_size, inputs.sizes.head_dim)
    return [run(inputs.noise(3, width), inputs.noise(width), 1e-6) for width in widths]


def _add_rms_norm(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    x, residual = inputs.noise(2, 3, inputs.sizes.hidden_size)
    return [*run(x, residual, inputs.noise(inputs.sizes.hidden_size), 1e-6)]


def _apply_rope(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    q, k, _ = inputs.heads(3)
    return [
        run(x, angles.cos(), angles.sin(), adjacent_pairs=adjacent)
        for x, pairs in ((q, inputs.sizes.head_dim // 2), (k, inputs.sizes.head_dim // 4))
        for angles in [inputs.noise(3, pairs).float()]
        for adjacent in (False, True)
    ]


def _silu_and_mul(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    return [run(inputs.noise(3, 2 * inputs.sizes.intermediate_size))]


def _skinny_linear(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    width = inputs.sizes.hidden_size
    weight, bias = inputs.noise(width, width) / width**0.5, inputs.noise(width)
    return [
        run(inputs.noise(rows, width), weight, one, splits)
        for splits in (SPLITS[0], SPLITS[2])
        for rows, one in ((1, bias), (MAX_ROWS, None))
    ]


def _penalise(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Two of three rows of logits; a token is in a history more than once, and what is behind it is not read."""
    vocab_size, device = inputs.sizes.vocab_size, inputs.device
    history = torch.tensor([[2, 1, 2, 2, -1], [7, 7, 7, 7, -1], [5, 3, 0, 5, -1]]).int()
    state = SlotState(
        last_tokens=torch.zeros(0, device=device),
        page_table=torch.zeros(0, device=device),
        history=history.to(device),
        counts=torch.arange(2 * vocab_size).view(2, -1).remainder(5).int().to(device),
    )
    results = []
    for counts in (False, True):
        logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1)).to(device)
        penalties = Penalties(
            rows=torch.tensor([2, 0]).to(device),
            slots=torch.tensor([0, 2]).to(device),
            count_bases=torch.tensor([0, vocab_size]).to(device),
            repetition=torch.tensor([1.3, 0.7]).to(device),
            frequency=torch.tensor([0.7, 0.0]).to(device),
            presence=torch.tensor([0.1, -0.3]).to(device),
            history_width=4,
            counts=counts,
        )
        run(logits, penalties, state)
        results.append(logits)
    return results


def _scaled_logits(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Three rows: with all penalties, without, and with counts that are those of nobody."""
    vocab_size, device = inputs.sizes.vocab_size, inputs.device
    state = _state(4, vocab_size, device)
    state.history[:3] = torch.tensor([[2, 1, 2, 2], [4, 4, 3, 9], [5, 3, 0, 5]]).int()
    state.counts[0] = 0
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(1)).to(device)
    columns = torch.tensor([[1.3, 0.7, 0.1, 0.8], [1.0, 0.0, 0.0, 1.0], [0.7, 0.0, 0.0, 2.5]])
    repetition, frequency, presence, temperature = columns.T.contiguous().to(device)
    rows = torch.arange(3)
    penalties = Penalties(
        rows=rows.to(device),
        slots=rows.flip(0).to(device),
        count_bases=torch.tensor([2 * vocab_size, 0, 0]).to(device),
        repetition=repetition,
        frequency=frequency,
        presence=presence,
        history_width=4,
        counts=True,
        lengths=torch.tensor([4, 0, 4]).int().to(device),
    )
    return [run(logits, temperature, penalties, state)]


def _choose_tokens(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Three rows of logits; with a minimum, only some tokens can be drawn."""
    results = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        logits = 4 * torch.randn(3, inputs.sizes.vocab_size, generator=generator)
        keys = torch.randint(-(2**31), 2**31, (2, 3), generator=generator, dtype=torch.int64).int()
        low, high = keys.to(inputs.device)
        minimum = (
            torch.tensor([[-torch.inf], [8.0], [12.0]]).to(inputs.device) if seed % 2 else None
        )
        results.append(run(logits.to(inputs.device), minimum, low, high))
        drawn = torch.tensor([1, 0, 1]).int().to(inputs.device)
        results.append(run(logits.to(inputs.device), minimum, low, high, drawn))
    return results


def _lowest_kept(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Which tokens of rows with every kind of filter are kept."""
    vocab_size, device = inputs.sizes.vocab_size, inputs.device
    generator = torch.Generator().manual_seed(2)
    # Few digits, so that some values are equal.
    logits = (4 * torch.randn(4, vocab_size, generator=generator)).round(decimals=1).to(device)
    log_min_p = torch.tensor([-3.0, -torch.inf, -torch.inf, -9.0])
    top_k = torch.tensor([vocab_size, vocab_size, 20, vocab_size // 2])
    top_p = torch.tensor([1.0, 0.9, 1.0, 0.999])
    lowest = run(logits, *(one.to(device) for one in (log_min_p, top_k, top_p)))
    return [(logits >= lowest).int()]


def _varlen_attention(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Segments of several lengths, and a part of the rows of one; heads are parts of a fused projection."""
    heads, width = inputs.sizes.vision_heads
    fused = inputs.noise(84, 3 * heads, width)
    q, k, v = fused.split_with_sizes((heads, heads, heads), dim=1)
    starts = torch.tensor([0, 3, 20, 84], dtype=torch.int32).to(inputs.device)
    some = torch.tensor([0, 9], dtype=torch.int32).to(inputs.device)
    whole = torch.tensor([0, 84], dtype=torch.int32).to(inputs.device)
    return [
        run(q, k, v, Spans(starts, starts, 64, 64)),
        run(q[30:39], k, v, Spans(some, whole, 9, 84)),
    ]


def _state(width: int, vocab_size: int, device: torch.device) -> SlotState:
    """Five slots, and counts for two of them."""
    return SlotState(
        last_tokens=torch.zeros(5, dtype=torch.int64, device=device),
        page_table=torch.zeros(5, 3, dtype=torch.int32, device=device),
        history=torch.ones(5, width, dtype=torch.int32, device=device),
        counts=torch.ones(3, vocab_size, dtype=torch.int32, device=device),
    )


def _update_slots(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    """Rows that begin anew and get entries, and pages alone."""
    width, vocab_size = 9, 20
    state = _state(width, vocab_size, inputs.device)
    whole = ([1, 14], [5, 9], [2, 4], [6, 7], [18, 20, 40], [6, 8, 9], [2], [45, 59], [2, 1])
    for lists in (whole, ([3], [2], *[[]] * 7)):
        values = zip(fields(StateUpdate), lists, strict=True)
        short = {"pages", "history_first", "history_ids", "count_values"}
        dtypes = ((torch.int32 if one.name in short else torch.int64, few) for one, few in values)
        run(
            state, StateUpdate(*(torch.tensor(few, dtype=d).to(inputs.device) for d, few in dtypes))
        )
    return [state.page_table, state.history, state.counts]


def _record_tokens(run: Run, inputs: Inputs) -> Sequence[Tensor]:
    width, vocab_size = 9, 20
    state = _state(width, vocab_size, inputs.device)
    rows = SampledRows(
        slots=torch.tensor([3, 0, 4]),
        history_rows=torch.tensor([0, 2]),
        history_places=torch.tensor([3 * width + 8, 4 * width]),
        count_rows=torch.tensor([2, 0]),
        count_bases=torch.tensor([2 * vocab_size, 0]),
    )
    rows = SampledRows(*(getattr(rows, one.name).to(inputs.device) for one in fields(rows)))
    run(state, torch.tensor([7, 19, 11]).to(inputs.device), rows)
    return [state.last_tokens, state.history, state.counts]


CASES: Mapping[str, Callable[[Run, Inputs], Sequence[Tensor]]] = {
    "rotate_and_write": _rotate_and_write,
    "paged_attention": _paged_attention,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "apply_rope": _apply_rope,
    "silu_and_mul": _silu_and_mul,
    "skinny_linear": _skinny_linear,
    "penalise": _penalise,
    "scaled_logits": _scaled_logits,
    "lowest_kept": _lowest_kept,
    "choose_tokens": _choose_tokens,
    "varlen_attention": _varlen_attention,
    "update_slots": _update_slots,
    "record_tokens": _record_tokens,
}
"""By operation: the results of an implementation for the inputs."""


def defect(op: str, run: Run, reference: Run, inputs: Inputs) -> str:
    """Why a kernel cannot be used, in one line; empty if it can.

    An error of the reference is raised: without it there is no model, with or without kernels.
    """
    expected = CASES[op](reference, inputs)
    try:
        found = CASES[op](run, inputs)
        # Reads the results, and so waits for the kernel and gets its errors.
        differences = [difference(*pair) for pair in zip(found, expected, strict=True)]
        return next(filter(None, differences), "")
    except Exception as error:  # noqa: BLE001 - compilers and drivers may raise anything
        return in_one_line(error)


def in_one_line(error: Exception) -> str:
    """The kind of an error and its message, without the middle of a long one."""
    text = " ".join(str(error).split())
    short = text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
    return f"{type(error).__name__}: {short}"


def difference(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> str:
    """How a result differs from that of the reference, in one line; empty if it does not.

    Args:
        found: The result.
        expected: That of the reference.
        dtype: The dtype in which both were computed, a key of `LIMITS`; None = their own.
    """
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{found.dtype} {[*found.shape]} instead of {expected.dtype} {[*expected.shape]}"
    limit = LIMITS.get(dtype or expected.dtype, 0.0)  # integers are equal
    error = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
    if error <= limit:
        return ""
    return f"it differs from its reference by {error:.2g} of the largest value, limit {limit:.2g}"
