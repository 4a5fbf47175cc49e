"""Decides questions by the probabilities of their labels, which the engine tells without generating anything.

A label of several tokens is judged token by token: its probability is the product of those of its tokens, each after
the ones before it. What labels have in common at their beginning is computed once, and what is hopeless not at all.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
import math
import time
from typing import Final

from inference_service.backend.admission import AdmittedRequest
from inference_service.backend.run import CacheUse, run_probes
from inference_service.decisions import Decision, DecisionRequest, Decisions, Question
from inference_service.domain import TokenUsage
from inference_service.engine_client.interface import Engine
from inference_service.engine_protocol.messages import (
    EngineRequest,
    Probe,
    ProbeResult,
    SamplingParams,
)
from inference_service.errors import ContextLengthError, InternalError
from inference_service.media.prepare import PreparedMedia
from inference_service.text.decisions.prompts import DecisionPrompts, QuestionPrompt
from inference_service.text.prompt import Prompt


MIN_LABEL_MASS: Final = 0.05
"""With less, the model would say something else than the labels, and their ratio is noise: the answer is a refusal."""
_HOPELESS: Final = -20.0
"""A beginning of a label with a lower log probability is not followed: 255 of them are less than a millionth."""

_LABELS_AT_ONCE: Final = 1000
"""To look at them takes the event loop a few milliseconds."""

_NOTHING_SAMPLED: Final = SamplingParams(temperature=0.0, max_tokens=1)

Ask = Callable[
    [Prompt, Sequence[bytes | memoryview], Sequence[Probe]], Awaitable[Sequence[ProbeResult]]
]
"""Runs probes on the engine, given a prompt and the pixels of its images; returns the results in order."""


@dataclass(slots=True)
class _Tally:
    """What is known about one question with its options in one order.

    Attributes:
        prompt: The question in the prompt.
        logprobs: Log probability of every complete label sequence so far.
        top_is_label: The most likely next token begins a label.
    """

    prompt: QuestionPrompt
    logprobs: dict[tuple[int, ...], float] = field(default_factory=dict)
    top_is_label: bool = False
    _sorted: list[tuple[int, ...]] = field(default_factory=list)

    def candidates(self, begun: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens that continue a beginning of labels, in ascending order."""
        if not self._sorted:  # when they are asked for: a request may have a thousand such lists
            self._sorted = sorted(self.prompt.labels)
        found: list[int] = []
        length = len(begun)
        place = bisect_right(self._sorted, begun)  # the labels that begin so follow it
        while place < len(self._sorted) and self._sorted[place][:length] == begun:
            found.append(self._sorted[place][length])
            place = bisect_left(self._sorted, (*begun, found[-1] + 1), place)
        return tuple(found)

    def masses(self, count: int) -> list[float]:
        """The probability of each of so many options, once all labels are judged."""
        masses = [0.0] * count
        for ids, indices in self.prompt.labels.items():
            for index in indices:
                masses[index] += math.exp(self.logprobs.get(ids, -math.inf)) / len(indices)
        return masses


def _decision(question: Question, tallies: Sequence[_Tally]) -> Decision:
    """The answer to a question: the mean over the orders of its options."""
    count = len(question.options) or 2
    columns = zip(*(tally.masses(count) for tally in tallies), strict=True)
    masses = [math.fsum(column) / len(tallies) for column in columns]
    total = math.fsum(masses)
    return Decision(
        kind=question.kind,
        name=question.name,
        probabilities=tuple(mass / total if total else 1 / count for mass in masses),
        label_mass=min(1.0, total),
        top_is_label=all(tally.top_is_label for tally in tallies),
        refused=total < MIN_LABEL_MASS,
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """Judge what follows a beginning of the labels of one question; its log probability is `logprob`."""

    tally: _Tally
    begun: tuple[int, ...] = ()
    logprob: float = 0.0

    def probe(self) -> Probe:
        """The probe for the engine."""
        text = () if self.tally.prompt.whole else self.tally.prompt.token_ids
        return Probe(
            token_ids=(*text, *self.begun), candidate_ids=self.tally.candidates(self.begun)
        )

    def take(self, result: ProbeResult) -> list[_Job]:
        """Notes a result; returns what is to be judged next.

        Raises:
            InternalError: The model's output is not a distribution.
        """
        if any(map(math.isnan, result.logprobs)):
            raise InternalError("The model's output is not a number.")
        tally = self.tally
        candidates = tally.candidates(self.begun)
        if not self.begun:
            tally.top_is_label = result.top_id in candidates
        further = []
        for token_id, logprob in zip(candidates, result.logprobs, strict=True):
            ids, total = (*self.begun, token_id), self.logprob + logprob
            if ids in tally.prompt.labels:
                tally.logprobs[ids] = total
            if total > _HOPELESS and tally.candidates(ids):
                further.append(_Job(tally, ids, total))
        return further


class _Jobs:
    """Jobs that wait, by the prompt that they share: that of the input, or that of one question with its own."""

    def __init__(self, jobs: Iterable[_Job]) -> None:
        self._number = 0
        self._kinds: dict[int, deque[tuple[int, _Job]]] = {}
        self._heads: list[tuple[int, int]] = []  # a heap: the number of the first job of each kind
        self.add(jobs)

    def add(self, jobs: Iterable[_Job]) -> None:
        """Lets jobs wait behind the others."""
        for job in jobs:
            prompt = job.tally.prompt
            kind = 0 if prompt.whole is None else id(prompt)
            if kind not in self._kinds:
                self._kinds[kind] = deque()
                heappush(self._heads, (self._number, kind))
            self._kinds[kind].append((self._number, job))
            self._number += 1

    def first_of_a_kind(self, size: int) -> list[_Job]:
        """Takes the first job and those that share its prompt, at most so many; none = no job waits."""
        if not self._heads:
            return []
        _, kind = heappop(self._heads)
        waiting = self._kinds[kind]
        batch = [waiting.popleft()[1] for _ in range(min(size, len(waiting)))]
        if waiting:
            heappush(self._heads, (waiting[0][0], kind))
        else:
            del self._kinds[kind]
        return batch


class _Pace:
    """Lets others have the event loop between pieces of work on labels, of which a request may have a million."""

    def __init__(self) -> None:
        self._labels = 0

    async def after(self, *tallies: _Tally) -> None:
        """Goes on after a piece of work on so many."""
        self._labels += sum(len(tally.prompt.labels) for tally in tallies)
        if self._labels >= _LABELS_AT_ONCE:
            self._labels = 0
            await asyncio.sleep(0)


def check_lengths(
    questions: Sequence[Question], prompts: DecisionPrompts, max_model_len: int
) -> None:
    """Refuses a request of which not every question fits the context window.

    Raises:
        ContextLengthError: The input fills it, or a question does together with the input.
    """
    shared = len(prompts.evidence.token_ids)
    for prompt in prompts.questions:
        question = questions[prompt.index]
        own = len(prompt.token_ids) + prompt.longest_label
        if shared + own > max_model_len:
            raise ContextLengthError(
                f"This model's maximum context length is {max_model_len} tokens (--max-model-len). However, the input"
                f" has {shared} tokens, and this question with its longest answer {own}. Please reduce their length.",
                field="spec.messages" if shared >= max_model_len else question.field,
                metadata={
                    "prompt_tokens": str(shared + own),
                    "max_context_tokens": str(max_model_len),
                },
            )


def usage_of(
    prompts: DecisionPrompts, video_tokens: int, cache: Sequence[CacheUse] = ()
) -> TokenUsage:
    """The tokens of a request: those of the input once, and those of each question.

    Args:
        prompts: Its prompts.
        video_tokens: Those of videos among them.
        cache: What each run of the engine found in the prefix cache and added to it; the first one is about the input.
            Empty = before the first run.
    """
    shared = sum(image.num_tokens for image in prompts.evidence.images)
    wholes = [question.whole for question in prompts.questions if question.whole is not None]
    own = sum(sum(image.num_tokens for image in whole.images) - shared for whole in wholes)
    evidence = len(prompts.evidence.token_ids)
    total = evidence + sum(len(question.token_ids) for question in prompts.questions)
    cached = min(cache[0].found, evidence) if cache else 0
    return TokenUsage(
        prompt_tokens=total,
        image_tokens=shared + own - video_tokens,
        video_tokens=video_tokens,
        cached_tokens=cached,
        cache_write_tokens=min(sum(use.written for use in cache), total - cached),
    )


async def run_decisions(
    engine: Engine,
    request: DecisionRequest,
    prompts: DecisionPrompts,
    media: PreparedMedia,
    admitted: AdmittedRequest,
    *,
    at_once: int,
) -> Decisions:
    """Decides the questions of a request; cancelling it aborts the request in the engine.

    Args:
        engine: The engine.
        request: The request.
        prompts: Its prompts.
        media: The images that they contain.
        admitted: Its admission.
        at_once: Maximum probes of one engine request.

    Raises:
        ServiceError: The request was aborted, or the engine failed on it.
    """
    cache: list[CacheUse] = []

    async def ask(
        prompt: Prompt, pixels: Sequence[bytes | memoryview], probes: Sequence[Probe]
    ) -> Sequence[ProbeResult]:
        admitted.raise_if_aborted()
        engine_request = EngineRequest(
            request_id=admitted.engine_id,
            prompt_token_ids=prompt.token_ids,
            images=prompt.images,
            sampling=_NOTHING_SAMPLED,
            num_choices=len(probes),
            cache_salt=request.evidence.cache_salt,
            caller=admitted.caller,
            probes=tuple(probes),
        )
        field = request.evidence.prompt_field
        results, use = await run_probes(engine, engine_request, pixels, field, is_first=not cache)
        cache.append(use)
        return results

    answers = await decide(request.questions, prompts, ask, at_once)
    return Decisions(
        created=int(time.time()),
        answers=answers,
        usage=usage_of(prompts, media.video_tokens, cache),
        images=media.infos,
        prompt_format=prompts.prompt_format,
    )


async def decide(
    questions: Sequence[Question], prompts: DecisionPrompts, ask: Ask, at_once: int
) -> tuple[Decision, ...]:
    """Decides questions: the first one alone, so that the input is in the prefix cache for the others.

    Args:
        questions: The questions.
        prompts: Their prompts.
        ask: Runs probes on the engine.
        at_once: Maximum number of probes that it is given at once.
    """
    tallies = [_Tally(prompt) for prompt in prompts.questions]
    jobs, pace = _Jobs(map(_Job, tallies)), _Pace()
    size = 1
    while batch := jobs.first_of_a_kind(size):
        probes: list[Probe] = []
        for job in batch:
            probes.append(job.probe())
            await pace.after(job.tally)
        first = batch[0].tally.prompt
        results = await ask(
            prompts.prompt_of(first), first.pixels if first.whole else prompts.pixels, probes
        )
        for job, result in zip(batch, results, strict=True):
            jobs.add(job.take(result))
            await pace.after(job.tally)
        size = at_once
    of_questions: list[list[_Tally]] = [[] for _ in questions]
    for tally in tallies:
        of_questions[tally.prompt.index].append(tally)
    decisions: list[Decision] = []
    for question, own in zip(questions, of_questions, strict=True):
        decisions.append(_decision(question, own))
        await pace.after(*own)
    return tuple(decisions)
