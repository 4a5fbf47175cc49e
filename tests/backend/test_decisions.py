"""How decisions are made of log probabilities: labels of several tokens, ends, batches, and the figures of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.backend import decisions
from inference_service.backend.decisions import _Job, _Jobs, _Tally, decide
from inference_service.decisions import Decision, Option, Question, QuestionKind
from inference_service.engine_protocol.messages import Probe, ProbeResult
from inference_service.errors import InternalError
from inference_service.text.decisions.prompts import DecisionPrompts, QuestionPrompt
from inference_service.text.prompt import Prompt
from tests.support.line_counts import lines_of


Labels = dict[tuple[int, ...], list[int]]
EVIDENCE = Prompt(token_ids=(1, 2, 3), images=())


class Judge:
    """An engine that knows the probability of every token behind every text; others are impossible."""

    def __init__(self, chances: Mapping[tuple[int, ...], Mapping[int, float]]) -> None:
        self.chances = chances
        self.asked: list[list[tuple[int, ...]]] = []

    async def __call__(
        self, prompt: Prompt, pixels: Sequence[bytes | memoryview], probes: Sequence[Probe]
    ) -> list[ProbeResult]:
        del pixels
        self.asked.append([probe.token_ids for probe in probes])
        return [self._result(prompt, probe) for probe in probes]

    def _result(self, prompt: Prompt, probe: Probe) -> ProbeResult:
        del prompt
        known = self.chances.get(probe.token_ids, {})
        values = [known.get(token, 0.0) for token in probe.candidate_ids]
        logs = [math.log(value) if value else -math.inf for value in values]
        return ProbeResult(logprobs=tuple(logs), top_id=max(known, key=lambda i: known[i]))


def choice_of(count: int) -> Question:
    options = tuple(Option(value=str(index)) for index in range(count))
    return Question(name=None, kind=QuestionKind.CHOICE, instructions=(), options=options)


def prompts_of(*labels: Labels, first: int = 10) -> DecisionPrompts:
    questions = [
        QuestionPrompt(token_ids=(first + index,), index=index, labels=one)
        for index, one in enumerate(labels)
    ]
    return DecisionPrompts(
        evidence=EVIDENCE, pixels=(), questions=tuple(questions), prompt_format=1
    )


LABEL = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@given(st.sets(LABEL, min_size=1, max_size=12), st.lists(st.integers(1, 4), max_size=4))
def test_candidates_are_the_tokens_that_continue_labels(
    labels: set[tuple[int, ...]], begun: list[int]
) -> None:
    tally = _Tally(QuestionPrompt(token_ids=(), labels={one: [0] for one in labels}))
    start, length = tuple(begun), len(begun)
    longer = {one[length] for one in labels if len(one) > length and one[:length] == start}
    assert tally.candidates(start) == tuple(sorted(longer))


def test_all_labels_of_a_question_are_followed_in_few_steps() -> None:
    labels: Labels = {(first, second): [0] for first in range(1000) for second in range(2)}
    tally = _Tally(QuestionPrompt(token_ids=(), labels=labels))

    def follow() -> None:
        for first in tally.candidates(()):
            assert tally.candidates((first,)) == (0, 1)

    assert lines_of(follow) < 20 * len(labels)  # a look at every label for each is 2,000,000


async def test_labels_of_several_tokens() -> None:
    """The products of the probabilities of their tokens; what they share is asked for once."""
    labels: Labels = {(50,): [0], (51, 60): [1], (51, 61, 70): [2], (51, 61, 71): [2]}
    judge = Judge(
        {
            (10,): {50: 0.25, 51: 0.5, 99: 0.25},
            (10, 51): {60: 0.5, 61: 0.25},
            (10, 51, 61): {70: 0.5, 71: 0.25},
        }
    )
    [decision] = await decide([choice_of(3)], prompts_of(labels), judge, 8)
    masses = [0.25, 0.25, 0.5 * 0.25 * 0.75]
    assert decision.label_mass == pytest.approx(sum(masses))
    assert decision.probabilities == pytest.approx([m / sum(masses) for m in masses])
    assert decision.top_is_label
    assert judge.asked == [[(10,)], [(10, 51)], [(10, 51, 61)]]


async def test_what_is_hopeless_is_not_followed() -> None:
    labels: Labels = {(50,): [0], (51, 60): [1]}
    judge = Judge({(10,): {50: 1.0, 51: 1e-10}})
    [decision] = await decide([choice_of(2)], prompts_of(labels), judge, 8)
    assert decision.probabilities == (1.0, 0.0)
    assert len(judge.asked) == 1


async def test_options_with_the_same_text_share_its_probability() -> None:
    judge = Judge({(10,): {50: 0.5, 51: 0.25}})
    [decision] = await decide([choice_of(3)], prompts_of({(50,): [0, 2], (51,): [1]}), judge, 8)
    assert decision.probabilities == pytest.approx([1 / 3] * 3)
    assert decision.best == 0


async def test_the_orders_of_a_question_are_averaged() -> None:
    prompts = prompts_of({(50,): [0], (51,): [1]}, {(50,): [1], (51,): [0]})
    orders = tuple(replace(question, index=0) for question in prompts.questions)
    judge = Judge({(10,): {50: 0.5, 51: 0.25}, (11,): {50: 0.125, 51: 0.125, 9: 0.75}})
    [decision] = await decide([choice_of(2)], replace(prompts, questions=orders), judge, 8)
    assert decision.label_mass == pytest.approx(0.5)
    assert decision.probabilities == pytest.approx([0.625, 0.375])
    assert not decision.top_is_label


async def test_the_first_question_goes_alone_and_the_others_in_batches() -> None:
    labels: Labels = {(50,): [0], (51,): [1]}
    judge = Judge({(10 + index,): {50: 0.5, 51: 0.25} for index in range(10)})
    decisions = await decide([choice_of(2)] * 10, prompts_of(*[labels] * 10), judge, 4)
    assert [len(asked) for asked in judge.asked] == [1, 4, 4, 1]
    assert len(decisions) == 10


WHOLE = Prompt(token_ids=(), images=())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=12), st.data())
def test_jobs_are_taken_in_their_order_with_those_that_share_their_prompt(
    added: list[tuple[int, int]], data: st.DataObject
) -> None:
    kinds = [QuestionPrompt(token_ids=(), whole=WHOLE if kind else None) for kind in range(4)]
    tallies = [_Tally(prompt) for prompt in (*kinds, replace(kinds[0]))]
    jobs, listed = _Jobs(()), list[_Job]()
    for kind, size in added:
        more = [_Job(tallies[kind]), _Job(tallies[-1]), _Job(data.draw(st.sampled_from(tallies)))]
        jobs.add(more)
        listed += more
        first = listed[0].tally.prompt
        same = [
            job
            for job in listed
            if job.tally.prompt is first or job.tally.prompt.whole is first.whole is None
        ][:size]
        assert list(map(id, jobs.first_of_a_kind(size))) == list(map(id, same))
        listed = [job for job in listed if not any(job is one for one in same)]
    while batch := jobs.first_of_a_kind(5):
        listed = [job for job in listed if not any(job is one for one in batch)]
    assert not listed


def every_token(_: Prompt, probes: Sequence[Probe]) -> list[ProbeResult]:
    return [ProbeResult(logprobs=(-5.0,) * len(probe.candidate_ids), top_id=0) for probe in probes]


def test_each_beginning_is_looked_at_once() -> None:
    """A batch is found without a look at all that wait, which are a hundred thousand beginnings of labels."""
    count, beginnings = 10, 200
    labels: Labels = {(first, second): [0] for first in range(beginnings) for second in range(2)}

    async def ask(prompt: Prompt, _: object, probes: Sequence[Probe]) -> list[ProbeResult]:
        return every_token(prompt, probes)

    def run() -> None:
        asyncio.run(decide([choice_of(2)] * count, prompts_of(*[labels] * count), ask, 4))

    assert lines_of(run, "inference_service.backend") < 150 * count * beginnings


@pytest.mark.parametrize("at_once", [1, 64])
async def test_others_have_the_event_loop_between_pieces_of_work_on_labels(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Also while a batch is prepared and read, and while decisions are made of all of them."""
    labels: Labels = {(first, 7): [first % 255] for first in range(500)}
    in_turn, longest = 0, 0

    def looked_at() -> None:
        nonlocal in_turn, longest
        in_turn += len(labels)
        longest = max(longest, in_turn)

    def listed(of: Labels) -> list[tuple[int, ...]]:
        looked_at()
        return sorted(of)

    class Tally(_Tally):
        def candidates(self, begun: tuple[int, ...]) -> tuple[int, ...]:
            if not begun:
                looked_at()
            return super().candidates(begun)

        def masses(self, count: int) -> list[float]:
            looked_at()
            return super().masses(count)

    async def others() -> None:
        nonlocal in_turn
        while True:
            in_turn = 0
            await asyncio.sleep(0)

    async def ask(prompt: Prompt, _: object, probes: Sequence[Probe]) -> list[ProbeResult]:
        await asyncio.sleep(0)
        return [replace(one, logprobs=(-30.0,) * 500) for one in every_token(prompt, probes)]

    monkeypatch.setattr(decisions, "_Tally", Tally)
    monkeypatch.setattr(decisions, "sorted", listed, raising=False)
    running = asyncio.ensure_future(others())
    try:
        answers = await decide([choice_of(255)] * 40, prompts_of(*[labels] * 40), ask, at_once)
    finally:
        running.cancel()
    assert len(answers) == 40
    assert longest <= 3 * decisions._LABELS_AT_ONCE


async def test_nothing_but_noise_is_a_refusal() -> None:
    judge = Judge({(10,): {9: 1.0}})
    [decision] = await decide(
        [choice_of(4)], prompts_of({(50 + i,): [i] for i in range(4)}), judge, 1
    )
    assert decision.refused
    assert (decision.label_mass, decision.top_is_label) == (0, False)
    assert decision.probabilities == (0.25,) * 4


async def test_what_is_no_number_is_an_error() -> None:
    async def broken(
        prompt: Prompt, pixels: Sequence[bytes | memoryview], probes: Sequence[Probe]
    ) -> list[ProbeResult]:
        del prompt, pixels
        return [ProbeResult(logprobs=(math.nan,) * 2, top_id=0) for _ in probes]

    with pytest.raises(InternalError):
        await decide([choice_of(2)], prompts_of({(50,): [0], (51,): [1]}), broken, 1)


def decision_of(kind: QuestionKind, *probabilities: float) -> Decision:
    return Decision(
        kind=kind,
        name=None,
        probabilities=probabilities,
        label_mass=1.0,
        top_is_label=True,
        refused=False,
    )


def test_figures_of_the_published_example() -> None:
    choice = decision_of(QuestionKind.CHOICE, 0.1, 0.86, 0.04)
    assert (choice.best, round(choice.confidence, 2)) == (1, 0.79)
    score = decision_of(QuestionKind.SCORE, 0.65, 0.28, 0.07)
    assert (round(score.score, 2), round(score.confidence, 2)) == (0.42, 0.37)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9).filter(lambda p: sum(p) > 1e-3))
@settings(max_examples=200)
def test_figures_are_in_their_ranges(weights: list[float]) -> None:
    probabilities = [weight / math.fsum(weights) for weight in weights]
    for kind in (QuestionKind.CHOICE, QuestionKind.SCORE):
        decision = decision_of(kind, *probabilities)
        assert 0 <= decision.confidence <= 1 + 1e-9
        assert -1e-9 <= decision.score <= len(weights) - 1 + 1e-9
        assert probabilities[decision.best] == max(probabilities)
