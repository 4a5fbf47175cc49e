"""The sampling settings of all slots on the host, and the selection of a step's rows from them.

Plain numpy: the selection costs a few array operations, whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from inference_service.engine.noise import noise_keys, noise_state
from inference_service.engine.row_settings import RowSettings
from inference_service.engine_protocol.messages import SamplingParams


MIN_TEMPERATURE: Final = 1e-5
"""A row with a lower temperature is greedy, as the division would overflow (vLLM's limit)."""

NARROW: Final = 1024
"""Up to this `top_k`, the most likely tokens are selected; beyond, and for `top_p` alone, all are sorted on a GPU."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row of logits whose next token is sampled.

    Attributes:
        slot: The slot of its sequence.
        num_answer_tokens: Length of the answer so far.
        is_masked: A constraint applies to the next token.
        awaits_mask: A constraint applies later, so that the answer must not end before.
        excluded: Tokens that must not be sampled now.
    """

    slot: int
    num_answer_tokens: int
    is_masked: bool = False
    awaits_mask: bool = False
    excluded: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The settings of R rows of logits as arrays on the host, and as tensors on the device once they are sent.

    "Drawn" are the rows that are not greedy. int64, where nothing else is said.

    Attributes:
        bias_rows: [B] rows of the values to be added.
        bias_ids: [B] their token ids.
        bias_values: [B] float32.
        penalty_rows: [P] rows with a penalty.
        penalty_slots: [P] their slots.
        count_bases: [P] where their counts begin in the flattened `SlotState.counts`; 0 without counts.
        repetition: [P] float32.
        frequency: [P] float32.
        presence: [P] float32.
        drawn_rows: [D] rows that are drawn.
        temperature: [D] float32.
        log_min_p: [D] float32: minimum logit relative to the maximum.
        log_bound: [D] float32: the same, at most what min-p and top-p leave.
        top_p: [D] float32.
        top_k: [D] at most V, which is off.
        noise_low: [D] int32: low half of the key of the noise.
        noise_high: [D] int32: high half.
        narrow: [N] which of the D are cut to at most `NARROW` tokens.
        wide: [W] which of the D are cut otherwise by `top_k` or `top_p`.
        plain: [M] which of the D have no filter.
        filtered: [D - M] the others.
    """

    bias_rows: Any
    bias_ids: Any
    bias_values: Any
    penalty_rows: Any
    penalty_slots: Any
    count_bases: Any
    repetition: Any
    frequency: Any
    presence: Any
    drawn_rows: Any
    temperature: Any
    log_min_p: Any
    log_bound: Any
    top_p: Any
    top_k: Any
    noise_low: Any
    noise_high: Any
    narrow: Any
    wide: Any
    plain: Any
    filtered: Any

    @property
    def arrays(self) -> list[Any]:
        """The values of the fields, in order."""
        return [getattr(self, name) for name in _FIELDS]


_FIELDS: Final = tuple(field.name for field in fields(Selection))
_FLOATS: Final = {
    "bias_values",
    "repetition",
    "frequency",
    "presence",
    "temperature",
    "log_min_p",
    "log_bound",
    "top_p",
}
_HALVES: Final = {"noise_low", "noise_high"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What the host must know of a selection to launch the operations.

    Attributes:
        history_width: Entries of `SlotState.history` to read for penalties.
        counts: Whether any row needs its counts.
        narrow_width: The largest `top_k` of the narrow rows.
        cuts_mass: Whether a row has `top_p` but no `top_k`.
        cuts_rank: Whether a row has `top_k`.
    """

    history_width: int = 0
    counts: bool = False
    narrow_width: int = 0
    cuts_mass: bool = False
    cuts_rank: bool = False


_NOTHING: Final = Selection(
    **{
        name: np.empty(
            0, np.float32 if name in _FLOATS else np.int32 if name in _HALVES else np.int64
        )
        for name in _FIELDS
    }
)
"""The selection of rows that are greedy, without any penalty or bias."""


class SamplingTable:
    """The sampling settings by slot."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._params: list[SamplingParams | None] = [None] * num_slots
        self._listed = np.zeros(num_slots, bool)
        # Of each slot as arrays: making them takes longer than a step, where many have hundreds of entries.
        self._biases = [(_NOTHING.bias_ids, _NOTHING.bias_values)] * num_slots
        self._penalised = np.zeros(num_slots, bool)
        self._temperature = np.ones(num_slots, np.float32)
        self._drawn = np.zeros(num_slots, bool)
        self._log_min_p = np.zeros(num_slots, np.float32)
        self._log_bound = np.zeros(num_slots, np.float32)
        self._top_p = np.ones(num_slots, np.float32)
        self._top_k = np.zeros(num_slots, np.int64)
        self._noise = np.zeros(num_slots, np.uint64)
        self._penalties = np.zeros((3, num_slots), np.float32)
        self._version = 0
        self._last: tuple[tuple[int, bytes], Selection, Shape] | None = None

    def set(
        self, slot: int, params: SamplingParams, choice_index: int, *, constrained: bool
    ) -> None:
        """Takes the settings of a slot's new tenant."""
        vocab_size = self._vocab_size
        self._version += 1
        self._params[slot] = params
        self._listed[slot] = (
            bool(params.logit_bias or params.bad_sequences) or params.min_tokens > 0 or constrained
        )
        token_ids, values = zip(*params.logit_bias, strict=True) if params.logit_bias else ((), ())
        self._biases[slot] = (np.array(token_ids, np.int64), np.array(values, np.float32))
        self._penalised[slot] = is_penalised(params)
        self._penalties[:, slot] = (
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        drawn = params.temperature >= MIN_TEMPERATURE
        self._drawn[slot] = drawn
        # Those of a greedy row are off.
        self._temperature[slot] = params.temperature if drawn else 1.0
        self._top_p[slot] = params.top_p if drawn else 1.0
        top_k = params.top_k if drawn and 0 < params.top_k < vocab_size else vocab_size
        self._top_k[slot] = top_k
        log_min_p = math.log(params.min_p) if drawn and params.min_p > 0 else -math.inf
        self._log_min_p[slot] = log_min_p
        self._log_bound[slot] = max(log_min_p, _log_tail(self._top_p[slot], top_k, vocab_size))
        self._noise[slot] = noise_state(params.seed, choice_index)

    def select(
        self,
        rows: Seq[SampledRow],
        history_lengths: Seq[int],
        count_bases: npt.NDArray[np.int64],
    ) -> tuple[Selection, Shape]:
        """The settings of a step's rows.

        Args:
            rows: R rows.
            history_lengths: For each the length of its history, if its slot is penalised.
            count_bases: By slot; see `Selection`.
        """
        slots = np.array([row.slot for row in rows], np.int64)
        lengths = np.array([row.num_answer_tokens for row in rows], np.int64)
        [drawn] = self._drawn[slots].nonzero()
        changing = self._penalised[slots].any() or self._listed[slots].any()
        if not (len(drawn) or changing):
            return _NOTHING, Shape()
        # The next step mostly has the same rows, and only the noise is new.
        key = (self._version, slots.tobytes())
        if changing or self._last is None or self._last[0] != key:
            self._last = (key, *self._select(rows, slots, history_lengths, count_bases))
        _, selection, shape = self._last
        low, high = noise_keys(self._noise[slots[drawn]], lengths[drawn])
        return replace(selection, noise_low=low, noise_high=high), shape

    def whole(
        self,
        rows: Seq[SampledRow],
        history_lengths: Seq[int],
        history_places: Ints,
        count_bases: Ints,
    ) -> RowSettings | None:
        """The settings of all rows of a step that is captured; None if a row needs a bias.

        Args:
            rows: R rows.
            history_lengths: For each the length of its history, if its slot is penalised.
            history_places: [R] where its token is recorded.
            count_bases: By slot; see `Selection`.
        """
        slots = np.array([row.slot for row in rows], np.int64)
        if self._listed[slots].any() and any(map(self._has_bias, rows)):
            return None
        answers = np.array([row.num_answer_tokens for row in rows], np.int64)
        low, high = noise_keys(self._noise[slots], answers)
        lengths = np.where(self._penalised[slots], history_lengths, 0)
        return RowSettings(
            np.stack((history_places, count_bases[slots], self._top_k[slots])),
            np.stack((low, high, lengths, self._drawn[slots])).astype(np.int32),
            np.stack(
                (
                    *(self._temperature[slots], self._log_min_p[slots], self._top_p[slots]),
                    *self._penalties[:, slots],
                )
            ),
        )

    def _select(
        self,
        rows: Seq[SampledRow],
        slots: Ints,
        history_lengths: Seq[int],
        count_bases: Ints,
    ) -> tuple[Selection, Shape]:
        """The selection without its noise."""
        [drawn] = self._drawn[slots].nonzero()
        [penalised] = self._penalised[slots].nonzero()
        of_penalties, of_drawn = slots[penalised], slots[drawn]
        bases = count_bases[of_penalties]
        top_k, top_p = self._top_k[of_drawn], self._top_p[of_drawn]
        log_min_p = self._log_min_p[of_drawn]
        ranked, massed = top_k < self._vocab_size, top_p < 1
        is_narrow = top_k <= NARROW if self._vocab_size > NARROW else ranked
        is_plain = ~(ranked | massed | (log_min_p > -math.inf))
        bias_rows, bias_ids, bias_values = self._bias(rows, slots)
        repetition, frequency, presence = self._penalties[:, of_penalties]
        selection = Selection(
            bias_rows,
            bias_ids,
            bias_values,
            penalised,
            of_penalties,
            bases,
            repetition,
            frequency,
            presence,
            drawn,
            self._temperature[of_drawn],
            log_min_p,
            self._log_bound[of_drawn],
            top_p,
            top_k,
            _NOTHING.noise_low,
            _NOTHING.noise_high,
            is_narrow.nonzero()[0],
            (~is_narrow & (ranked | massed)).nonzero()[0],
            is_plain.nonzero()[0],
            (~is_plain).nonzero()[0],
        )
        shape = Shape(
            history_width=max((history_lengths[row] for row in penalised.tolist()), default=0),
            counts=bool(bases.any()),
            narrow_width=int(top_k[is_narrow].max(initial=0)),
            cuts_mass=bool((massed & ~ranked).any()),
            cuts_rank=bool(ranked.any()),
        )
        return selection, shape

    def _has_bias(self, row: SampledRow) -> bool:
        params = self._params[row.slot]
        assert params is not None, "a slot without tenant"
        return bool(params.logit_bias or row.excluded or banned(params, row))

    def _bias(self, rows: Seq[SampledRow], slots: Ints) -> tuple[Ints, Ints, Floats]:
        """Rows, token ids and values of what is added to logits."""
        places, token_ids, values = (
            [_NOTHING.bias_rows],
            [_NOTHING.bias_ids],
            [_NOTHING.bias_values],
        )
        for index in self._listed[slots].nonzero()[0].tolist():
            row = rows[index]
            params = self._params[row.slot]
            assert params is not None, "a slot without tenant"
            own_ids, own_values = self._biases[row.slot]
            excluded = banned(params, row) + row.excluded
            places.append(np.full(len(own_ids) + len(excluded), index))
            token_ids += (own_ids, np.array(excluded, np.int64))
            values += (own_values, np.full(len(excluded), -math.inf, np.float32))
        return np.concatenate(places), np.concatenate(token_ids), np.concatenate(values)


def is_penalised(params: SamplingParams) -> bool:
    """Whether any penalty for previous tokens applies."""
    return params.repetition_penalty != 1.0 or is_counted(params)


def is_counted(params: SamplingParams) -> bool:
    """Whether a penalty depends on how often a token is in the answer."""
    return params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def banned(params: SamplingParams, row: SampledRow) -> tuple[int, ...]:
    """End tokens that are excluded: until `min_tokens` is reached, and where a constrained answer must go on."""
    is_early = row.num_answer_tokens < params.min_tokens
    goes_on = row.is_masked if params.ignore_eos else is_early
    own = params.eos_token_ids if goes_on or row.awaits_mask else ()
    return own + params.stop_token_ids if is_early else own


def _log_tail(top_p: np.float32, top_k: int, vocab_size: int) -> float:
    """A logit relative to the maximum below which `top_p` alone keeps no token.

    If each token below it has less than half of (1 - top_p) / V of the weight of the most likely one, then all of them
    together are in the tail that `top_p` cuts off; the half is for rounding. With `top_k`, they are no tail of all
    tokens, but there are few anyway.
    """
    if top_p >= 1 or top_k < vocab_size:
        return -math.inf
    return math.log((1 - float(top_p)) / (2 * vocab_size))
