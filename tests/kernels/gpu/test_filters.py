"""The kernel of min-p, top-k and top-p keeps the tokens that sorting keeps."""

from __future__ import annotations

import math

import pytest
import torch

from inference_service.kernels.filters import lowest_kept


FILTERS = [
    (min_p, top_k, top_p)
    for min_p in (0.0, 0.02, 1.0)
    for top_k in (1, 7, 100, 2000, 0)
    for top_p in (0.0, 0.5, 0.95, 1.0)
]


def filters_of(rows: list[tuple[float, int, float]], vocab_size: int) -> list[torch.Tensor]:
    log_min_p = [math.log(min_p) if min_p else -math.inf for min_p, _, _ in rows]
    top_k = [min(top_k, vocab_size) or vocab_size for _, top_k, _ in rows]
    return [torch.tensor(log_min_p), torch.tensor(top_k), torch.tensor([p for *_, p in rows])]


def check(filters, logits: torch.Tensor, rows: list[tuple[float, int, float]]) -> None:
    given = filters_of(rows, logits.shape[1])
    wanted = logits >= lowest_kept(logits, *given)
    kept = logits >= filters.lowest_kept(logits, *given)
    for row, found, expected in zip(rows, kept, wanted, strict=True):
        assert torch.equal(found, expected), (row, int(found.sum()), int(expected.sum()))


def logits_of(count: int, vocab_size: int, scale: float, digits: int) -> torch.Tensor:
    """Few digits bring ties."""
    generator = torch.Generator().manual_seed(vocab_size)
    return (scale * torch.randn(count, vocab_size, generator=generator)).round(decimals=digits)


@pytest.mark.parametrize(("vocab_size", "digits"), [(2500, 4), (70, 0)])
def test_some_filters(filters, vocab_size, digits):
    some = FILTERS[4::7]
    check(filters, logits_of(len(some), vocab_size, 4.0, digits), some)


@pytest.mark.full
@pytest.mark.parametrize(
    ("vocab_size", "scale", "digits"),
    [(2500, 4.0, 4), (70, 1.0, 0), (5000, 4.0, 1), (20_000, 0.5, 4), (20_000, 20.0, 2)],
)
def test_every_filter(filters, vocab_size, scale, digits):
    """More tokens than the table holds are in the flat rows of the largest vocabulary."""
    check(filters, logits_of(len(FILTERS), vocab_size, scale, digits), FILTERS)


def test_more_tokens_than_the_table_holds(filters):
    logits = torch.randn(2, filters._TABLE + 1000, generator=torch.Generator().manual_seed(3))
    check(filters, logits, [(0.0, 8500, 1.0), (0.0, 9000, 0.7)])


def test_rows_of_equal_and_of_excluded_tokens(filters):
    logits = torch.randn(4, 600)
    logits[0] = 0.0
    logits[1, 3:] = -torch.inf
    logits[2] = -0.0
    logits[2, 100:200] = 0.0
    logits[3] -= 1e4
    for one in ((0.5, 20, 0.9), (0.0, 0, 0.5)):
        check(filters, logits, [one] * 4)


def test_a_row_without_filters_is_not_read(filters):
    logits = torch.full((2, 100), torch.nan)
    logits[1] = torch.arange(100.0)
    lowest = filters.lowest_kept(logits, *filters_of([(0.0, 0, 1.0), (0.0, 3, 1.0)], 100))
    assert lowest.tolist() == [[-torch.inf], [97.0]]
    assert filters.lowest_kept(logits[:0], *filters_of([], 100)).shape == (0, 1)
