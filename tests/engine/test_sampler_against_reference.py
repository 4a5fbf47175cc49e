"""The sampler with state on the device chooses what the sampler that recounts everything chooses, step after step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest
import torch

from inference_service.engine import sampler, sampling_table
from inference_service.engine.masks import TokenMask
from inference_service.engine.sampler import sample_
from inference_service.engine.sequence import Sequence
from inference_service.engine.slots import Slots
from inference_service.engine.staging import Staging
from inference_service.engine_protocol.messages import SamplingParams
from inference_service.families.footprint import largest_state_bytes
from inference_service.kernels import slot_state
from inference_service.kernels.slot_state import record_tokens
from tests.support import reference_sampler
from tests.support.reference_sampler import RowMask, SamplingRow
from tests.support.sampling import CPU, MAX_LEN, new_slots, prepare, sample, sequence_of


SMALL, LARGE = 50, 5000
"""From 4096 on, the sampler looks for the most likely tokens by chunks."""


def params(vocab_size: int) -> st.SearchStrategy[SamplingParams]:
    token = st.integers(0, vocab_size - 1)
    return st.builds(
        SamplingParams,
        max_tokens=st.just(100),
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_k=st.sampled_from([-1, 0, 1, 3, 20, 49, 50, 100, 1024, 1025]),
        top_p=st.sampled_from([0.0, 1e-6, 0.5, 0.9, 0.999, 1.0]),
        min_p=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 1.05, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.0, 1.0, -0.3]),
        frequency_penalty=st.sampled_from([0.0, 0.0, -0.5, 0.7]),
        seed=st.integers(-(2**63), 2**63 - 1),
        min_tokens=st.integers(0, 3),
        ignore_eos=st.booleans(),
        eos_token_ids=st.sampled_from([(), (5,), (5, 6)]),
        stop_token_ids=st.sampled_from([(), (7,)]),
        logit_bias=st.lists(st.tuples(token, st.sampled_from([-100.0, 4.0])), max_size=2).map(
            tuple
        ),
    )


@st.composite
def rows(draw: st.DrawFn, vocab_size: int) -> SamplingRow:
    tokens = st.lists(st.integers(0, vocab_size - 1), max_size=6)
    constraint = draw(st.sampled_from([None, None, "active", "later"]))
    return SamplingRow(
        draw(params(vocab_size)),
        tuple(draw(tokens.filter(bool))),
        tuple(draw(tokens)),
        draw(st.integers(0, 3)),
        is_masked=constraint == "active",
        awaits_mask=constraint == "later",
    )


def logits_of(count: int, vocab_size: int, seed: int, digits: int) -> torch.Tensor:
    """Few digits bring ties, as 16-bit weights do."""
    noise = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed))
    return (noise * 3).round(decimals=digits)


def masks_of(batch: list[SamplingRow], permitted: frozenset[int], vocab_size: int) -> Any:
    """The same mask for the reference and for the sampler; None if no row is masked."""
    places = [index for index, row in enumerate(batch) if row.is_masked]
    if not places:
        return None, None
    words = torch.zeros(-(-vocab_size // 32), dtype=torch.int64)
    for token in permitted:
        words[token // 32] |= 1 << (token % 32)
    bits = (words & 0xFFFFFFFF).to(torch.int32).expand(len(places), -1).contiguous()
    return RowMask(places, [permitted] * len(places)), TokenMask(torch.tensor(places), bits)


@pytest.mark.parametrize(
    ("looks", "widest"), [(True, sampler._WIDEST_TABLE), (True, 4), (False, 0)]
)
@pytest.mark.parametrize(("vocab_size", "examples"), [(SMALL, 100), (LARGE, 25)])
def test_a_batch(
    monkeypatch: pytest.MonkeyPatch, looks: bool, widest: int, vocab_size: int, examples: int
) -> None:
    monkeypatch.setattr(sampler, "_WIDEST_TABLE", widest)

    @given(st.data())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    def check(data: st.DataObject) -> None:
        batch = data.draw(st.lists(rows(vocab_size), min_size=1, max_size=6))
        seed, digits = data.draw(st.integers(0, 999)), data.draw(st.sampled_from([0, 1, 5]))
        logits = logits_of(len(batch), vocab_size, seed, digits)
        permitted = data.draw(st.frozensets(st.integers(0, vocab_size - 1), min_size=1, max_size=9))
        plain_mask, mask = masks_of(batch, permitted, vocab_size)
        wanted = reference_sampler.sample(logits, batch, plain_mask)
        assert torch.equal(sample(logits, batch, mask, looks=looks), wanted)

    check()


def test_a_row_of_which_much_may_pass_makes_the_table_of_others_no_wider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths: list[int] = []
    real = sampler._table

    def table(*given: torch.Tensor) -> Any:
        values, token_ids = real(*given)
        widths.append(values.shape[1])
        return values, token_ids

    monkeypatch.setattr(sampler, "_table", table)
    usual = SamplingParams(max_tokens=9, temperature=0.7, top_k=20, top_p=0.8)
    batch = [SamplingRow(usual, (1,), ())] * 3
    for wide in (
        SamplingParams(max_tokens=9, temperature=2.0, top_k=6000),
        SamplingParams(max_tokens=9, temperature=2.0, top_p=0.9999),
        SamplingParams(max_tokens=9, temperature=2.0, min_p=1e-9),
    ):
        rows = [*batch, SamplingRow(wide, (1,), ())]
        logits = logits_of(len(rows), 8000, 1, 5)
        wanted = reference_sampler.sample(logits, rows)
        assert torch.equal(sample(logits, rows, None, looks=True), wanted)
    assert len(widths) == 3
    assert max(widths) < 1000


@dataclass
class Bench:
    """Sequences that come, get tokens, lose their slots and end, beside what the reference says of each."""

    slots: Slots = field(default_factory=lambda: new_slots(4, SMALL))
    staging: Staging = field(default_factory=lambda: Staging(CPU))
    running: list[Sequence] = field(default_factory=list)
    waiting: list[Sequence] = field(default_factory=list)

    def free_slots(self) -> list[int]:
        return sorted(set(range(4)) - {sequence.slot for sequence in self.running})

    def admit(self, sequence: Sequence) -> None:
        sequence.slot = self.free_slots()[0]
        sequence.epoch += 1
        self.running.append(sequence)

    def step(self, chosen: list[Sequence], seed: int, *, looks: bool) -> None:
        logits = logits_of(len(chosen), SMALL, seed, 1)
        batch = [
            SamplingRow(
                one.sampling,
                one.request.prompt_token_ids,
                one.token_ids[one.num_prompt_tokens :],
                one.choice_index,
            )
            for one in chosen
        ]
        wanted = reference_sampler.sample(logits, batch)
        selection, shape, recorded = prepare(self.slots, chosen, self.staging)
        state = self.slots.state
        token_ids = sample_(logits, selection, shape, state, looks=looks)
        record_tokens(state, token_ids, recorded)
        assert torch.equal(token_ids, wanted)
        for sequence, token_id in zip(chosen, token_ids.tolist(), strict=True):
            sequence.token_ids.append(token_id)
            assert state.last_tokens[sequence.slot] == token_id
            if len(sequence) == MAX_LEN:
                self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.slots.forget([sequence])


def run_stream(data: st.DataObject) -> None:
    bench = Bench()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["add", "step", "step", "step", "preempt", "end"]))
        if action == "add" and bench.free_slots():
            row = data.draw(rows(SMALL).filter(lambda row: not row.is_masked))
            sequence = sequence_of(row, 0)
            sequence.constraint = None
            bench.admit(bench.waiting.pop() if bench.waiting else sequence)
        if not bench.running:
            continue
        sequence = data.draw(st.sampled_from(bench.running))
        if action == "preempt":
            bench.running.remove(sequence)
            bench.waiting.append(sequence)
        elif action == "end":
            bench.end(sequence)
        elif action == "step":
            some = data.draw(st.lists(st.sampled_from(bench.running), min_size=1, unique_by=id))
            bench.step(some, data.draw(st.integers(0, 99)), looks=data.draw(st.booleans()))


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_streams_of_sequences(data: st.DataObject) -> None:
    run_stream(data)


def run_tenants_of_one_slot() -> None:
    """One sequence loses its slot to another, whose end brings it back."""
    settings = SamplingParams(
        max_tokens=100, temperature=0.0, frequency_penalty=1.5, repetition_penalty=1.4
    )
    bench = Bench()
    first, second = (
        sequence_of(SamplingRow(settings, prompt, ()), 0) for prompt in ((1, 2), (3, 4, 5))
    )
    for sequence in (first, second, first):
        bench.admit(sequence)
        assert sequence.slot == 0
        for _ in range(8):
            bench.step([sequence], 7, looks=True)
        bench.running.clear()


def test_the_largest_state_is_as_large_as_announced() -> None:
    settings = SamplingParams(max_tokens=9, frequency_penalty=1.0, repetition_penalty=1.1)
    slots = new_slots(5, SMALL)
    sequences = [sequence_of(SamplingRow(settings, (1,), ()), slot) for slot in range(5)]
    prepare(slots, sequences, Staging(CPU))
    state = slots.state
    tensors = (state.last_tokens, state.page_table, state.history, state.counts)
    assert sum(tensor.nbytes for tensor in tensors) == largest_state_bytes(5, 1, MAX_LEN, SMALL)


def test_a_slot_forgets_its_tenant() -> None:
    run_tenants_of_one_slot()


def test_notices_counts_of_the_tenant_before(monkeypatch: pytest.MonkeyPatch) -> None:
    real = slot_state.update_slots

    def without_clearing(state, update) -> None:
        kept = state.counts.clone()
        real(state, update)
        for row in update.count_rows.tolist():
            state.counts[row] += kept[row]

    monkeypatch.setattr("tests.support.sampling.update_slots", without_clearing)
    with pytest.raises(AssertionError):
        run_tenants_of_one_slot()


def test_notices_a_history_that_is_not_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    real = slot_state.record_tokens

    def without_history(state, token_ids, recorded) -> None:
        kept = state.history.clone()
        real(state, token_ids, recorded)
        state.history.copy_(kept)

    monkeypatch.setitem(globals(), "record_tokens", without_history)
    with pytest.raises(AssertionError):
        run_tenants_of_one_slot()


def test_notices_a_bound_that_cuts_into_the_nucleus(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(1, SMALL, 3, 5).expand(200, -1).contiguous()
    batch = [
        SamplingRow(SamplingParams(max_tokens=9, top_p=0.99, seed=seed), (1,), ())
        for seed in range(200)
    ]
    wanted = reference_sampler.sample(logits, batch)
    assert torch.equal(sample(logits, batch, looks=True), wanted)
    real = sampling_table._log_tail
    monkeypatch.setattr(sampling_table, "_log_tail", lambda *inputs: real(*inputs) / 4)
    assert not torch.equal(sample(logits, batch, looks=True), wanted)
