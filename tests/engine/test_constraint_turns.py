"""Constrained answers take turns where those of one caller cost more than its share of a step, by clocks of tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
import itertools
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from inference_service.engine.blocks import BlockManager
from inference_service.engine.constrained import too_expensive
from inference_service.engine.constraint_state import MAX_DEBT_S, ConstraintState, over_budget
from inference_service.engine.constraint_turns import ALL_S, CALLER_S, left_out
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import EngineRequest, FinishReason, SamplingParams


ROWS = 64
NO_MASK = np.zeros(1, np.int32)

Cost = Callable[[], float]


def state_of(cost_s: Cost) -> ConstraintState:
    """A state whose masks take this long; they are counted by `Engine.spent_s`."""
    now = [0.0]

    def works(*_: int) -> None:
        now[0] += cost_s()

    matcher: Any = SimpleNamespace(
        unsafe_compute_mask_ptr=works, consume_token=lambda _: True, is_error=lambda: False
    )
    return ConstraintState(matcher, None, lambda: now[0])


def answer(caller: str, name: str, cost_s: Cost | None) -> Sequence:
    made = Sequence(
        EngineRequest(
            request_id=name,
            prompt_token_ids=(1, 2),
            sampling=SamplingParams(max_tokens=10_000),
            caller=caller,
        )
    )
    if cost_s is not None:
        made.constraint = state_of(cost_s)
    return made


class Engine:
    """A scheduler whose steps compute masks as the runner does, and end answers as the pipeline does."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(
            BlockManager(20_000, 16),
            cast(EncoderCache[Any], SimpleNamespace(capacity_tokens=0)),
            max_model_len=20_000,
            max_num_seqs=80,
            max_num_batched_tokens=1024,
        )
        self.spent_s: list[Counter[str]] = []
        self.ended: list[Sequence] = []
        self._names = itertools.count()

    def add(self, caller: str, count: int, cost_s: Cost | float | None) -> list[Sequence]:
        """Answers whose masks take so long; None = they have no constraint."""
        cost = (lambda: cost_s) if isinstance(cost_s, float) else cost_s
        made = [answer(caller, f"{next(self._names)}", cost) for _ in range(count)]
        for one in made:
            self.scheduler.add([one])
        return made

    def step(self) -> None:
        chunks = self.scheduler.schedule().chunks
        self.scheduler.launched(chunks)
        spent_s: Counter[str] = Counter()
        for chunk in chunks:
            if (state := chunk.sequence.constraint) is not None:
                state.fill(NO_MASK)
                state.take(7)
                spent_s[chunk.sequence.caller] += state.spent_s  # type: ignore[assignment]
        for chunk in chunks:
            self.scheduler.commit(chunk, 7)
        for sequence, _ in list(
            too_expensive((chunk.sequence for chunk in chunks), self.scheduler.running)
        ):
            self.scheduler.finish(sequence, FinishReason.ERROR)
            self.ended.append(sequence)
        self.spent_s.append(spent_s)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()


def tokens(answers: Iterable[Sequence]) -> list[int]:
    return [one.num_answer_tokens for one in answers]


@pytest.mark.parametrize("cost_s", [0.0024, 0.006, 0.01])
def test_many_expensive_answers_of_a_caller_take_its_share_and_go_on(cost_s: float) -> None:
    engine = Engine()
    expensive = engine.add("a", ROWS, cost_s)
    plain = engine.add("b", 1, None)
    cheap = engine.add("b", 4, 0.00005)
    engine.steps(10)  # they begin all together, and it is not known what they take
    engine.spent_s.clear()
    begin = Counter({one: one.num_answer_tokens for one in expensive})
    engine.steps(500)
    assert max(spent_s["a"] for spent_s in engine.spent_s) <= CALLER_S + 1e-9
    assert min(tokens(plain + cheap)) >= 508, "these have a token in every step"
    assert engine.ended == []
    done = [one.num_answer_tokens - begin[one] for one in expensive]
    assert min(done) >= 500 // -(-ROWS // int(CALLER_S / cost_s)) - 1


def test_common_constraints_are_never_left_out() -> None:
    engine = Engine()
    common = engine.add("a", ROWS, 0.00005)
    engine.add("b", 1, None)
    engine.steps(100)
    assert min(tokens(common)) >= 80, "at first it is not known that they are cheap"
    begin = tokens(common)
    engine.steps(1000)
    assert tokens(common) == [count + 1000 for count in begin]
    assert engine.ended == []


def test_a_caller_alone_has_more() -> None:
    engine = Engine()
    engine.add("a", ROWS, 0.0024)
    engine.steps(10)
    engine.spent_s.clear()
    engine.steps(100)
    spent_s = [step["a"] for step in engine.spent_s]
    assert min(spent_s) > CALLER_S * 3
    assert max(spent_s) <= ALL_S + 1e-9
    engine.add("b", 1, None)
    engine.steps(2)
    assert engine.spent_s[-1]["a"] <= CALLER_S + 1e-9


def test_many_callers_share_what_all_may_take() -> None:
    engine = Engine()
    for number in range(16):
        engine.add(f"{number}", 4, 0.006)
    engine.steps(20)
    engine.spent_s.clear()
    engine.steps(100)
    assert max(sum(spent_s.values()) for spent_s in engine.spent_s) <= max(ALL_S, 16 * 0.006) + 1e-9
    assert min(tokens(engine.scheduler.running)) >= 20, "each caller has one in every step"


def test_cheap_answers_of_the_same_caller_keep_their_speed() -> None:
    engine = Engine()
    engine.add("a", 60, 0.006)
    cheap = engine.add("a", 4, 0.00005)
    engine.add("b", 1, None)
    engine.steps(50)
    begin = min(tokens(cheap))
    engine.steps(200)
    assert min(tokens(cheap)) - begin >= 190


def test_what_is_expensive_now_and_then_stays_near_the_share() -> None:
    """All at once, to be taken for cheap ones."""
    engine = Engine()

    def now_and_then() -> float:
        return 0.006 if len(engine.spent_s) % 5 == 0 else 0.00005

    engine.add("a", ROWS, now_and_then)
    engine.add("b", 1, None)
    engine.steps(30)
    engine.spent_s.clear()
    engine.steps(300)
    assert max(spent_s["a"] for spent_s in engine.spent_s) <= 3 * CALLER_S
    assert engine.ended == []


def test_what_a_step_leaves_out_ends_as_well() -> None:
    """Answers that are too expensive do not last the longer for taking turns."""
    engine = Engine()
    expensive = engine.add("a", ROWS, 0.1)
    plain = engine.add("b", 1, None)
    engine.steps(30)
    assert len(engine.ended) >= ROWS - 6
    assert set(engine.ended) <= set(expensive)
    assert plain[0].num_answer_tokens >= 29


def test_debts_of_those_left_out_count() -> None:
    rows = [state_of(lambda: 0.0) for _ in range(8)]
    for row in rows:
        row.debt_s = MAX_DEBT_S / 6
    ended = over_budget(rows[:4], rows[4:])
    assert 0 < len(ended) < 4
    assert sum(row.debt_s for row in rows if row not in ended) <= MAX_DEBT_S
    assert over_budget([], rows) == []


ANSWERS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(1e-6, 0.2) | st.none()), max_size=30)


@given(ANSWERS, st.booleans())
def test_every_answer_has_its_turn(rows: list[tuple[str, float | None]], is_alone: bool) -> None:
    answers = []
    for index, (caller, cost_s) in enumerate(rows):
        made = answer(caller, f"{index}", None)
        if cost_s is not None:
            made.constraint = state_of(lambda: 0.0)
            made.constraint.cost_s = cost_s
        answers.append(made)
    everybody = answers if is_alone else [*answers, answer("other", "x", None)]
    missing = {one for one in answers if one.constraint is not None}
    callers = {one.caller for one in missing}
    for _ in range(len(answers) + 1):
        out = left_out(answers, everybody)
        assert not any(one.constraint is None for one in out)
        going = [one for one in answers if one.constraint is not None and one not in out]
        assert {one.caller for one in going} == callers
        for caller in callers:
            costs = [one.constraint.cost_s for one in going if one.caller == caller]  # type: ignore[union-attr]
            assert len(costs) == 1 or sum(costs) <= ALL_S + 1e-9
        missing -= set(going)
        for one in going:
            one.constraint.num_left_out = 0  # type: ignore[union-attr]
    assert not missing
