"""The sampler against plain loops in numpy, against chi-square bounds, and row by row against any batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from inference_service.engine.logprobs import token_logprobs
from inference_service.engine_protocol.messages import SamplingParams
from inference_service.kernels.choice import gumbel_noise
from tests.support.reference_sampler import SamplingRow
from tests.support.sampling import keys_of, sample


VOCAB = 50


def noise_of(keys: list[tuple[int, int, int]], vocab_size: int) -> torch.Tensor:
    low, high = keys_of(keys)
    return gumbel_noise(low.unsqueeze(-1), high.unsqueeze(-1), torch.arange(vocab_size))


def random_logits(rows: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * scale


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 100} | changes))


def row(*, prompt=(1, 2), answer=(), choice_index=0, **changes: Any) -> SamplingRow:
    return SamplingRow(params(**changes), prompt, answer, choice_index)


def plain_distribution(logits: np.ndarray, row: SamplingRow) -> np.ndarray:
    """Probability of each token, the long way round."""
    p = row.params
    logits = logits.astype(np.float64).copy()
    for token, value in p.logit_bias:
        logits[token] += value
    if len(row.answer) < p.min_tokens:
        for token in [*p.stop_token_ids, *([] if p.ignore_eos else p.eos_token_ids)]:
            logits[token] = -math.inf
    for token in {*row.prompt, *row.answer}:
        factor = p.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, count in Counter(row.answer).items():
        logits[token] -= p.frequency_penalty * count + p.presence_penalty
    if p.temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    weights = np.exp((logits - logits.max()) / p.temperature)
    weights[weights < p.min_p * weights.max()] = 0
    order = np.argsort(-weights, kind="stable")
    if p.top_k:
        weights[order[p.top_k :]] = 0
    weights /= weights.sum()
    before = 0.0
    for token in order:
        kept = before < p.top_p
        before += weights[token]
        if not kept:
            weights[token] = 0
    return weights / weights.sum()


CASES = {
    "plain": row(),
    "cold": row(temperature=0.5),
    "hot": row(temperature=2.0),
    "greedy": row(temperature=0.0),
    "top_k": row(top_k=5),
    "top_k_1": row(top_k=1),
    "top_k_above_vocabulary": row(top_k=1000),
    "top_p": row(top_p=0.7),
    "tiny_top_p": row(top_p=1e-9),
    "min_p": row(min_p=0.2),
    "all_filters": row(top_k=20, top_p=0.8, min_p=0.02, temperature=0.7),
    "top_p_counts_what_top_k_left": row(top_k=3, top_p=0.6, temperature=3.0),
    "repetition": row(repetition_penalty=1.8, prompt=(3, 4, 4), answer=(5, 6, 5)),
    "repetition_below_1": row(repetition_penalty=0.5, prompt=(3, 4), answer=(5,)),
    "presence": row(presence_penalty=1.5, prompt=(3, 4), answer=(5, 6, 5, 5)),
    "frequency": row(frequency_penalty=0.7, prompt=(3, 4), answer=(5, 6, 5, 5)),
    "negative_penalties": row(frequency_penalty=-0.4, presence_penalty=-1.0, answer=(5, 6, 5)),
    "bias": row(logit_bias=((7, 5.0), (8, -100.0))),
    "bias_decides_greedy": row(temperature=0.0, logit_bias=((7, 100.0),)),
    "penalty_decides_greedy": row(
        temperature=0.0, repetition_penalty=9.0, answer=tuple(range(0, VOCAB, 2))
    ),
    "min_tokens": row(
        min_tokens=3, answer=(1,), eos_token_ids=(10, 11), stop_token_ids=(12,), temperature=3.0
    ),
    "min_tokens_ignore_eos": row(
        min_tokens=3, eos_token_ids=(10, 11), stop_token_ids=(12,), ignore_eos=True, temperature=3.0
    ),
    "everything": row(
        temperature=0.9,
        top_k=30,
        top_p=0.95,
        min_p=0.01,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias=((2, 1.0),),
        answer=(9, 9, 4),
    ),
}


def draw(logits: torch.Tensor, base: SamplingRow, draws: int) -> np.ndarray:
    """Counts over seeds: [VOCAB]."""
    rows = [
        SamplingRow(replace(base.params, seed=seed), base.prompt, base.answer)
        for seed in range(draws)
    ]
    tokens = sample(logits.expand(draws, -1).contiguous(), rows)
    return np.bincount(tokens.numpy(), minlength=VOCAB)


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_plain_distribution(name: str) -> None:
    case, draws = CASES[name], 8000
    logits = random_logits(1, seed=3)
    wanted = plain_distribution(logits[0].numpy(), case)
    counts = draw(logits, case, draws)
    assert counts[wanted == 0].sum() == 0, "a token came that the filters exclude"
    # Tokens rarer than 5 expected draws go into one class, as Pearson's test wants it.
    frequent = wanted * draws >= 5
    observed = np.append(counts[frequent], counts[~frequent].sum())
    hoped = np.append(wanted[frequent], wanted[~frequent].sum()) * draws
    classes = hoped > 0
    chi_square = (((observed - hoped) ** 2)[classes] / hoped[classes]).sum()
    freedom = max(1, classes.sum() - 1)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_the_statistic_notices_a_wrong_temperature() -> None:
    logits = random_logits(1, seed=3)
    wanted = plain_distribution(logits[0].numpy(), row(temperature=1.0)) * 8000
    counts = draw(logits, row(temperature=1.1), 8000)
    frequent = wanted >= 5
    chi_square = (((counts - wanted) ** 2)[frequent] / wanted[frequent]).sum()
    assert chi_square > frequent.sum() + 5 * math.sqrt(2 * frequent.sum())


@pytest.mark.parametrize("vary", ["seed", "choice_index", "position"])
def test_noise_is_independent_along_every_axis(vary: str) -> None:
    """Neighbouring keys give uncorrelated noise of the Gumbel distribution."""
    keys = {
        "seed": [(n, 0, 0) for n in range(400)],
        "choice_index": [(7, n, 0) for n in range(400)],
        "position": [(7, 0, n) for n in range(400)],
    }[vary]
    noise = noise_of(keys, 500)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.02)
    along_keys = torch.corrcoef(torch.stack([noise[:-1].flatten(), noise[1:].flatten()]))
    along_tokens = torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]))
    assert abs(along_keys[0, 1]) < 0.015
    assert abs(along_tokens[0, 1]) < 0.015
    assert len({tuple(values) for values in noise.tolist()}) == 400


def test_noise_does_not_change_between_versions() -> None:
    """A seed that a caller keeps must go on to mean the same."""
    noise = noise_of([(0, 0, 0), (2**63 - 1, 3, 100), (-1, 0, 5)], 3)
    golden = [0.455238, 0.245833, -0.108305, -1.34537, 1.372437, 0.699071]
    assert noise[:2].flatten().tolist() == pytest.approx(golden, abs=1e-5)
    assert noise[2].tolist() == pytest.approx([-0.312318, -1.643448, -0.357744], abs=1e-5)


rows_strategy = st.builds(
    row,
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5),
    answer=st.lists(st.integers(0, VOCAB - 1), max_size=5),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 20, VOCAB, 100]),
    top_p=st.sampled_from([1e-6, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    seed=st.integers(-(2**63), 2**63 - 1),
    choice_index=st.integers(0, 3),
    min_tokens=st.integers(0, 3),
    eos_token_ids=st.just((5,)),
    logit_bias=st.sampled_from([(), ((3, 4.0),)]),
)


@given(rows=st.lists(rows_strategy, min_size=1, max_size=6), logits_seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_row_does_not_depend_on_its_batch(rows: list[SamplingRow], logits_seed: int) -> None:
    # Rounded logits bring ties, where an order of candidates would show.
    logits = random_logits(len(rows), logits_seed).round()
    together = sample(logits, rows).tolist()
    alone = [sample(logits[i : i + 1], [rows[i]]).item() for i in range(len(rows))]
    assert together == alone


@given(row=rows_strategy, logits_seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_drawn_token_is_possible(row: SamplingRow, logits_seed: int) -> None:
    logits = random_logits(1, logits_seed)
    token = int(sample(logits, [row]))
    assert plain_distribution(logits[0].numpy(), row)[token] > 0


def test_seed_choice_and_position_change_the_draw() -> None:
    logits = torch.zeros(1, VOCAB).expand(60, -1).contiguous()
    seeds = sample(logits, [row(seed=n) for n in range(60)])
    choices = sample(logits, [row(choice_index=n) for n in range(60)])
    positions = sample(logits, [row(answer=[1] * n) for n in range(60)])
    assert min(len(set(tokens.tolist())) for tokens in (seeds, choices, positions)) > 25


def test_tokens_as_good_as_the_last_one_kept_stay() -> None:
    logits = torch.tensor([[3.0, 3.0, 3.0, 1.0]])
    drawn = {sample(logits, [row(top_k=2, seed=seed)]).item() for seed in range(60)}
    assert drawn == {0, 1, 2}


def test_logprobs_are_those_of_the_model() -> None:
    logits = random_logits(3, seed=5)
    tokens, num_top = [4, 9, 0], [0, 3, VOCAB + 5]
    wanted = logits.double().log_softmax(-1).numpy()
    for index, entry in enumerate(token_logprobs(logits, torch.tensor(tokens), num_top).read()):
        order = np.argsort(-wanted[index], kind="stable")
        assert entry.token_id == tokens[index]
        assert entry.logprob == pytest.approx(wanted[index, tokens[index]], abs=1e-5)
        assert entry.rank == order.tolist().index(tokens[index]) + 1
        assert [token for token, _ in entry.top] == order[: num_top[index]].tolist()
        values = [value for _, value in entry.top]
        assert values == pytest.approx(wanted[index, order[: num_top[index]]].tolist(), abs=1e-5)
