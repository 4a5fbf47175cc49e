"""The largest logit by chunks, and with noise for few tokens, is the one of `argmax` over all."""

from __future__ import annotations

from collections.abc import Callable
import math

import pytest
import torch
from torch import Tensor

from inference_service.engine import cpu_choice
from inference_service.engine.cpu_choice import MANY, argmax, argmax_with_noise
from inference_service.kernels.choice import bits_below, gumbel_noise, gumbel_of


WIDTHS = [1, 255, MANY - 1, MANY, MANY + 1, MANY + 255, MANY + 256, 20_000]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def keys(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randint(-(2**31), 2**31, (2, rows), generator=generator).int()
    return both[0], both[1]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_argmax(rows: int, width: int) -> None:
    logits = random(rows, width)
    assert argmax(logits).equal(logits.argmax(dim=-1))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_first_of_equal_maxima(width: int) -> None:
    """Whole numbers tie often; a row may be all minus infinity but for its end."""
    logits = (random(40, width) * 2).round()
    logits[1] = -math.inf
    logits[2] = -math.inf
    logits[2, -1] = 0.0
    logits[3] = 7.0
    assert argmax(logits).equal(logits.argmax(dim=-1))


@pytest.mark.parametrize("place", [0, 300, MANY, MANY + 99])
def test_a_nan_is_a_maximum(place: int) -> None:
    logits = random(2, MANY + 100)
    logits[0, place] = math.nan
    logits[0, 700] = math.inf
    assert argmax(logits).equal(logits.argmax(dim=-1))
    low, high = keys(2, 1)
    assert argmax_with_noise(logits, low, high)[0] == place


def peaked(logits: Tensor) -> Tensor:
    """Few tokens are likely, as in a model that was trained."""
    return logits * 3 - 20 * (random(*logits.shape, seed=9) < 3)


def halves_banned(logits: Tensor) -> Tensor:
    return logits.masked_fill(random(*logits.shape, seed=5) > 0, -math.inf)


def ties(logits: Tensor) -> Tensor:
    return (logits * 2).round() / 2


@pytest.mark.parametrize("shape", [lambda x: x, lambda x: 8 * x, peaked, halves_banned, ties])
@pytest.mark.parametrize("width", [300, MANY + 1, 20_000])
def test_noise_for_few_tokens_chooses_as_noise_for_all(
    shape: Callable[[Tensor], Tensor], width: int
) -> None:
    for seed in range(12):
        logits = shape(random(5, width, seed=seed))
        low, high = keys(5, seed)
        noise = gumbel_noise(low.unsqueeze(-1), high.unsqueeze(-1), torch.arange(width))
        expected = (noise + logits).argmax(dim=-1)
        assert argmax_with_noise(logits, low, high).equal(expected)


def test_few_tokens_get_noise_where_few_can_win(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def counting(bits: Tensor) -> Tensor:
        counts.append(bits.numel())
        return gumbel_of(bits)

    monkeypatch.setattr(cpu_choice, "gumbel_of", counting)
    argmax_with_noise(peaked(random(1, 20_000)), *keys(1, 0))
    assert max(counts) < 20_000 // 50


@pytest.mark.parametrize("noise", [0.0, 1.0, 6.0, 15.0])
def test_bits_of_large_noise(noise: float) -> None:
    limit = bits_below(noise)
    bits = torch.randint(2**31, (10**5,), generator=torch.Generator().manual_seed(0)).int()
    near = torch.arange(max(0, limit - 10**5), min(2**31, limit + 10**5)).int()
    for some in (bits, near):
        assert (some[gumbel_of(some) > noise] < limit).all()
    assert not (gumbel_of(near[:10]) < noise - 0.01).any()
