"""Masks of constraints against plain loops."""

from __future__ import annotations

from collections.abc import Iterable
import math
import time
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch

from inference_service.engine.masks import MaskBuffers, TokenMask
from inference_service.engine_protocol.messages import SamplingParams
from tests.support.reference_sampler import SamplingRow
from tests.support.sampling import sample


def packed(rows: list[set[int]], vocab_size: int) -> torch.Tensor:
    words = torch.zeros(len(rows), -(-vocab_size // 32), dtype=torch.int64)
    for row, tokens in enumerate(rows):
        for token in tokens:
            words[row, token // 32] |= 1 << (token % 32)
    return (words & 0xFFFFFFFF).to(torch.int32)


@st.composite
def masks(draw: st.DrawFn) -> tuple[int, list[int], list[set[int]]]:
    vocab_size = draw(st.sampled_from([5, 31, 32, 33, 64, 70]))
    rows = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True))
    tokens = st.sets(st.integers(0, vocab_size - 1), min_size=1)
    return vocab_size, rows, [draw(tokens) for _ in rows]


@given(masks(), st.integers(0, 1000))
def test_only_permitted_tokens_of_masked_rows_keep_their_logits(case, seed: int) -> None:
    vocab_size, rows, permitted = case
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(seed))
    expected = logits.clone()
    for row, tokens in zip(rows, permitted, strict=True):
        for token in set(range(vocab_size)) - tokens:
            expected[row, token] = -math.inf
    mask = TokenMask(torch.tensor(rows), packed(permitted, vocab_size))
    mask.apply_(logits, logits[rows])
    assert torch.equal(logits, expected)


class Numbered:
    """A constraint whose mask is its number, and which takes its time."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.filled = 0

    def fill(self, words: npt.NDArray[np.int32]) -> None:
        self.filled += 1
        if self.number < 0:
            raise MemoryError
        time.sleep(0.0005)  # so that helpers come in time
        words[:] = self.number


def masked(numbers: Iterable[int]) -> list[Any]:
    """Sequences with these constraints."""
    sampling = SamplingParams(max_tokens=9)
    return [
        SimpleNamespace(constraint=Numbered(number), is_masked=True, sampling=sampling)
        for number in numbers
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_threads_compute_every_mask_once(count: int) -> None:
    buffers = MaskBuffers(64)
    for _ in range(3):
        rows = masked(range(1, count + 1))
        mask = buffers.fill(rows, torch.arange(count), 64, torch.device("cpu"))
        assert mask.bits.tolist() == [[number] * 2 for number in range(1, count + 1)]
        assert [one.constraint.filled for one in rows] == [1] * count


def test_an_error_of_any_thread_is_raised() -> None:
    for place in range(8):
        numbers = [-1 if index == place else 1 for index in range(8)]
        with pytest.raises(MemoryError):
            MaskBuffers(8).fill(masked(numbers), torch.arange(8), 64, torch.device("cpu"))


def row(**options) -> SamplingRow:
    flags = {name: options.pop(name) for name in ("is_masked", "awaits_mask") if name in options}
    params = SamplingParams(max_tokens=9, eos_token_ids=(3,), stop_token_ids=(4,), **options)
    return SamplingRow(params, (1,), (), **flags)


def test_a_row_whose_permitted_tokens_are_all_excluded_takes_one_of_them() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 1.0, 2.0]]).repeat(3, 1)
    only_ends = packed([{3, 4}] * 3, 5)
    for temperature in (0.0, 1.0):
        rows = [
            row(temperature=temperature, min_tokens=5, seed=s, is_masked=True) for s in (1, 2, 3)
        ]
        tokens = sample(logits, rows, TokenMask(torch.arange(3), only_ends)).tolist()
        assert set(tokens) <= {3, 4}


@given(st.integers(0, 10_000), st.booleans())
def test_end_tokens_before_and_within_a_constraint(seed: int, ignore_eos: bool) -> None:
    logits = torch.zeros(3, 5)
    mask = TokenMask(torch.tensor([1]), packed([{2, 3}], 5))
    rows = [
        row(seed=seed, ignore_eos=ignore_eos, awaits_mask=True),
        row(seed=seed, ignore_eos=ignore_eos, is_masked=True),
        row(seed=seed, ignore_eos=ignore_eos),
    ]
    waiting, masked, plain = sample(logits, rows, mask).tolist()
    assert waiting != 3
    assert masked in ({2} if ignore_eos else {2, 3})
    assert plain == sample(logits[2:], [rows[2]]).item()
