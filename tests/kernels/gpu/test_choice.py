"""The kernels that choose tokens draw what the reference draws for the same keys."""

from __future__ import annotations

import pytest
import torch

from inference_service.kernels.choice import choose_tokens


def keys(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randint(-(2**31), 2**31, (2, count), generator=generator).int()
    return both[0], both[1]


@pytest.mark.parametrize(
    ("rows", "vocab_size"),
    [(1, 1), (3, 1023), (2, 1024), (5, 2500), pytest.param(64, 20_000, marks=pytest.mark.full)],
)
@pytest.mark.parametrize("cut", [None, -1.0, 3.0])
def test_tokens_of_equal_keys(choice, rows, vocab_size, cut):
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(rows, vocab_size, generator=generator)
        minimum = None if cut is None else torch.full((rows, 1), cut).minimum(logits.amax(-1, True))
        expected = choose_tokens(logits.clone(), minimum, *keys(rows, seed))
        assert torch.equal(choice.choose_tokens(logits, minimum, *keys(rows, seed)), expected)
        some = (torch.arange(rows) % 2).int()
        given = (minimum, *keys(rows, seed), some)
        expected = choose_tokens(logits.clone(), *given)
        assert torch.equal(choice.choose_tokens(logits, *given), expected)
        assert torch.equal(expected[::2], logits.argmax(-1)[::2])


def test_rows_without_a_largest_number(choice):
    """What torch chooses where a model gives no numbers, or where nothing passes."""
    logits = torch.randn(4, 3000)
    logits[0, [1500, 2999]] = torch.nan
    logits[1] = -torch.inf
    logits[2, [7, 2000]] = torch.inf
    minimum = torch.tensor([[-torch.inf], [-torch.inf], [0.0], [torch.inf]])
    for one in (None, minimum):
        expected = choose_tokens(logits.clone(), one, *keys(4, 0))
        assert torch.equal(choice.choose_tokens(logits, one, *keys(4, 0)), expected)
    assert len(choice.choose_tokens(logits[:0], None, *keys(0, 0))) == 0
