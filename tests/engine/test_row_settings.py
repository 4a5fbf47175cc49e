"""The fixed sequence of operations of captured steps chooses what the sampler that recounts everything chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
import pytest
import torch

from inference_service.engine import row_settings
from inference_service.engine.row_settings import RowSettings, choose, greedy_rows, recorded
from inference_service.engine.sequence import Sequence
from inference_service.engine.slots import Slots
from inference_service.engine_protocol.messages import SamplingParams
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.slot_state import StateUpdate, record_tokens, update_slots
from tests.engine.test_sampler_against_reference import SMALL, logits_of, rows
from tests.support import reference_sampler
from tests.support.reference_sampler import SamplingRow
from tests.support.sampling import CPU, MAX_LEN, sampled_row, sequence_of


SLOTS = 5


def new_slots() -> Slots:
    return Slots(SLOTS, max_pages=1, max_len=MAX_LEN, vocab_size=SMALL, device=CPU, padding_page=3)


def plain(row: SamplingRow) -> SamplingRow:
    """The row without what a captured step cannot do."""
    kept = replace(row.params, logit_bias=(), min_tokens=0)
    return replace(row, params=kept, is_masked=False, awaits_mask=False)


def told_of(rows: RowSettings) -> RowSettings:
    """The settings on the device."""
    return RowSettings(*(torch.from_numpy(part) for part in (rows.longs, rows.ints, rows.floats)))


def step(slots: Slots, sequences: list[Sequence], logits: torch.Tensor, ops: Ops) -> torch.Tensor:
    """One step of the sequences, with two rows of padding as a graph has them."""
    update_slots(slots.state, StateUpdate(*map(torch.from_numpy, slots.admit(sequences))))
    found = slots.whole([sampled_row(one) for one in sequences])
    assert found is not None
    count = len(sequences)
    padding = greedy_rows(count + 2, vocab_size=SMALL, history_place=SLOTS * MAX_LEN)
    told = told_of(found.padded(padding))
    where = torch.tensor([*(one.slot for one in sequences), SLOTS, SLOTS])
    padded = torch.cat((logits, logits[:1], logits[:1]))
    kept = padded.clone()
    tokens = choose(padded, where, told, slots.state, ops)
    assert torch.equal(padded, kept), "the logits are needed behind the graph"
    record_tokens(slots.state, tokens, recorded(where, told))
    assert not slots.state.counts[0].any()
    return tokens[:count]


def stream(data: st.DataObject, ops: Ops, num_steps: int) -> None:
    """Sequences come, go on in changing batches, lose their slots to others, and come back."""
    slots = new_slots()
    running: list[Sequence] = []
    for _ in range(num_steps):
        if len(running) < SLOTS and data.draw(st.booleans()):
            row = plain(data.draw(rows(SMALL)))
            free = min(set(range(SLOTS)) - {one.slot for one in running})
            running.append(sequence_of(row, free))
        if not running:
            continue
        if data.draw(st.integers(0, 5)) == 0:
            slots.forget([running.pop(data.draw(st.integers(0, len(running) - 1)))])
            continue
        chosen = data.draw(st.lists(st.sampled_from(running), min_size=1, unique_by=id))
        logits = logits_of(len(chosen), SMALL, data.draw(st.integers(0, 99)), 1)
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
        found = step(slots, chosen, logits, ops)
        assert torch.equal(found, wanted)
        for sequence, token_id in zip(chosen, found.tolist(), strict=True):
            sequence.token_ids.append(token_id)
            assert slots.state.last_tokens[sequence.slot] == token_id


def run(ops: Ops, *, max_examples: int, num_steps: int, **changes: Any) -> None:
    @given(st.data())
    @settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **changes,
    )
    def check(data: st.DataObject) -> None:
        stream(data, ops, num_steps)

    check()


def test_streams_of_sequences() -> None:
    run(REFERENCE, max_examples=25, num_steps=20)


@pytest.mark.full
def test_many_streams() -> None:
    run(REFERENCE, max_examples=500, num_steps=30)


@pytest.mark.parametrize(
    "fault",
    [
        "drawn",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("places", "counts")),
        *(pytest.param(name, marks=pytest.mark.full) for name in ("temperature", "penalties")),
    ],
)
def test_notices_a_wrong_setting(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    real = row_settings.RowSettings.padded

    def padded(self: RowSettings, others: RowSettings) -> RowSettings:
        told = real(self, others)
        if fault == "places":
            told.longs[0] = SLOTS * MAX_LEN
        if fault == "temperature":
            told.floats[0] = 1.0
        if fault == "drawn":
            told.ints[3] = 1
        if fault == "penalties":
            told.floats[3:] = [[1.0], [0.0], [0.0]]
        if fault == "counts":
            told.longs[1] = 0
        return told

    monkeypatch.setattr(RowSettings, "padded", padded)
    with pytest.raises(AssertionError):
        run(
            REFERENCE,
            max_examples=200,
            num_steps=20,
            phases=[Phase.generate],
            derandomize=True,
            database=None,
        )


def row_of(**changes: Any) -> Sequence:
    params = SamplingParams(max_tokens=9, **({"temperature": 0.0} | changes))
    return sequence_of(SamplingRow(params, (1, 2), ()), 0)


@pytest.mark.parametrize(
    ("sequence", "fits"),
    [
        (row_of(), True),
        (row_of(temperature=1.0, top_k=3, top_p=0.5, min_p=0.1, presence_penalty=1.0), True),
        (row_of(logit_bias=((3, 1.0),)), False),
        (row_of(min_tokens=2, eos_token_ids=(7,)), False),
        (row_of(min_tokens=2), True),
        (row_of(bad_sequences=((1, 3),)), True),
    ],
)
def test_rows_that_need_more(sequence: Sequence, fits: bool) -> None:
    """Biases are lists, and so are end tokens that come too early."""
    slots = new_slots()
    slots.admit([sequence])
    assert (slots.whole([sampled_row(sequence)]) is not None) is fits
    sequence.token_ids += [5, 6]
    if sequence.sampling.min_tokens:
        assert slots.whole([sampled_row(sequence)]) is not None, "then not any more"


def test_memory_is_whole_and_does_not_move() -> None:
    """A graph has the addresses of the state."""
    slots = new_slots()
    state = slots.state
    before = [one.data_ptr() for one in (state.history, state.counts)]
    all_penalties = SamplingParams(max_tokens=9, frequency_penalty=1.0, repetition_penalty=1.2)
    for _ in range(3):
        sequences = [
            sequence_of(SamplingRow(all_penalties, (1, slot), ()), slot) for slot in range(SLOTS)
        ]
        slots.admit(sequences)
        rows = slots.whole([sampled_row(one) for one in sequences])
        assert rows is not None
        assert sorted(rows.longs[1]) == [SMALL * (1 + slot) for slot in range(SLOTS)]
        slots.forget(sequences)
    assert [one.data_ptr() for one in (state.history, state.counts)] == before
    assert len(state.history) == len(state.counts) - 1 == SLOTS + 1
