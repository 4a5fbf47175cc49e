"""The settings of many rows are found without a look at each of their entries."""

from __future__ import annotations

from collections.abc import Iterator
import math

import numpy as np

from inference_service.engine.sampling_table import SampledRow, SamplingTable
from inference_service.engine_protocol.messages import SamplingParams


class Watched(tuple[tuple[int, float], ...]):
    """Entries that count how often somebody goes through them."""

    __slots__ = ()
    seen = 0

    def __iter__(self) -> Iterator[tuple[int, float]]:
        Watched.seen += 1
        return super().__iter__()


def table_of(*biases: tuple[tuple[int, float], ...]) -> SamplingTable:
    table = SamplingTable(8, 1000)
    for slot, bias in enumerate(biases):
        params = SamplingParams(
            max_tokens=9, temperature=0.0, logit_bias=bias, bad_sequences=((1, 2),)
        )
        table.set(slot, params, 0, constrained=False)
    return table


def test_no_step_goes_through_the_entries() -> None:
    table = table_of(Watched((number, 1.0) for number in range(300)), ())
    rows = [SampledRow(0, 0), SampledRow(1, 0, excluded=(7, 8))]
    none = np.zeros(8, np.int64)
    Watched.seen = 0
    for _ in range(3):
        assert table.whole(rows, [0, 0], none[:2], none) is None
        selection, _ = table.select(rows, [0, 0], none)
    assert Watched.seen == 0
    assert selection.bias_rows.tolist() == [0] * 300 + [1, 1]
    assert selection.bias_ids.tolist() == [*range(300), 7, 8]
    assert selection.bias_values.tolist() == [1.0] * 300 + [-math.inf] * 2


def test_a_slot_keeps_nothing_of_its_last_tenant() -> None:
    table = table_of(((3, 2.0),))
    table.set(0, SamplingParams(max_tokens=9, temperature=0.0, min_tokens=2), 0, constrained=False)
    none = np.zeros(8, np.int64)
    selection, _ = table.select([SampledRow(0, 0)], [0], none)
    assert not len(selection.bias_ids)
    assert table.whole([SampledRow(0, 0)], [0], none[:1], none) is not None
