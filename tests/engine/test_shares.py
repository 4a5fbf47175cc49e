"""Whatever one caller has in the engine, a short prompt of another one is computed within a few steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import itertools
import time

import pytest

from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.plan import Plan
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence, choices_of
from inference_service.engine.shares import Shares, overdue, overtakes
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    Probe,
    SamplingParams,
)
from tests.support.engine_load import without_images
from tests.support.image_spans import span


BUDGET = 64
ENCODED_PER_STEP = 16


class Engine:
    """A scheduler whose steps sample the token 7, and encode few images."""

    def __init__(
        self, *, pages: int = 400, seqs: int = 16, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cache: EncoderCache[str] = EncoderCache(200)
        self.scheduler = Scheduler(
            BlockManager(pages, 4),
            self.cache,
            max_model_len=400,
            max_num_seqs=seqs,
            max_num_batched_tokens=BUDGET,
            clock=clock,
        )
        self.unencoded: list[ImageSpan] = []

    def add(self, caller: str, request: EngineRequest) -> list[Sequence]:
        request = replace(request, caller=caller)
        sequences = choices_of(request)
        self.scheduler.add(sequences)
        return sequences

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.unencoded += [image for _, image in plan.images]
        room = ENCODED_PER_STEP
        while self.unencoded and room > 0:
            image = self.unencoded.pop(0)
            room -= image.num_tokens
            self.cache.fill(image.key, "embeddings")
        chunks = without_images(plan, {image.key for image in self.unencoded})
        self.scheduler.launched(chunks)
        for chunk in chunks:
            self.scheduler.commit(chunk, 7 if chunk.extends else None)
        return plan


def request(name: str, length: int, *, images: int = 0, **fields: object) -> EngineRequest:
    spans = tuple(span(f"{name} {index}".encode(), 1 + 17 * index, 16) for index in range(images))
    whole = EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(hash((name, index)) % 1000 for index in range(length)),
        images=spans,
        sampling=SamplingParams(max_tokens=200),
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


def bulk(kind: str, number: int) -> EngineRequest:
    name = f"bulk {number}"
    match kind:
        case "long prompts":
            return request(name, 300)
        case "questions":
            probes = tuple(Probe(token_ids=(5,) * 40, candidate_ids=(1,)) for _ in range(16))
            return request(name, 60, probes=probes, num_choices=16)
        case "choices":
            return request(name, 60, num_choices=4)
        case "images":
            return request(name, 200, images=8)
        case _:
            return request(name, 8)


KINDS = ("long prompts", "questions", "choices", "images", "answers", "answers that fill the cache")
MAX_STEPS = 3


def steps_of_a_newcomer(kind: str, caller: str, *, running: int) -> int:
    engine = Engine(pages=110 if kind == "answers that fill the cache" else 400)
    for number in range(30):
        engine.add("bulk", bulk(kind, number))
    for _ in range(running):
        engine.step()
    [newcomer] = engine.add(caller, request("newcomer", 8))
    count = 0
    while newcomer.num_answer_tokens == 0:
        engine.step()
        count += 1
    return count


@pytest.mark.parametrize("running", [0, 1, 7, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_a_short_prompt_does_not_wait_for_the_bulk_of_another_caller(
    kind: str, running: int
) -> None:
    assert steps_of_a_newcomer(kind, "other", running=running) <= MAX_STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_prompt_of_the_same_caller_waits(kind: str) -> None:
    """So the test above could fail."""
    assert steps_of_a_newcomer(kind, "bulk", running=7) > MAX_STEPS


def test_an_image_does_not_wait_for_the_images_of_another_caller() -> None:
    engine = Engine()
    for number in range(30):
        engine.add("bulk", bulk("images", number))
    for _ in range(12):
        engine.step()
    engine.add("other", request("newcomer", 20, images=1))
    plans = [engine.step() for _ in range(MAX_STEPS)]
    assert any(image.key.startswith(b"newcomer") for plan in plans for _, image in plan.images)
    assert engine.cache.num_tokens <= engine.cache.capacity_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_bulk_ends_beside_short_prompts_without_end(kind: str) -> None:
    engine = Engine(pages=110)
    scheduler = engine.scheduler
    flood = [s for number in range(8) for s in engine.add("bulk", bulk(kind, number))]
    short: list[Sequence] = []
    for count in range(6000):
        if not any(sequence.finish_reason is None for sequence in short):
            short = engine.add(
                "other",
                request(f"short {count}", 8, sampling=SamplingParams(max_tokens=3)),
            )
        engine.step()
        if all(sequence.finish_reason is not None for sequence in flood):
            break
    ended = {FinishReason.LENGTH, FinishReason.CONTEXT_LENGTH}
    assert {sequence.finish_reason for sequence in flood} <= ended
    assert scheduler.counters.preemptions < count


def test_who_has_had_least_comes_first() -> None:
    shares = Shares()
    for caller in ("a", "b", "b"):
        shares.enter(caller)
    shares.charge("a", 10)
    shares.charge("b", 5)
    running = {"a": 1, "b": 1}
    assert shares.first(["a", "b"], running) == "b"
    shares.charge("b", 20)
    assert shares.first(["a", "b"], running) == "a"
    assert shares.first(["a", "b"], {"a": 1}) == "b", "a caller of whom nothing runs"


def test_what_is_planned_counts_until_it_is_computed_or_not() -> None:
    shares = Shares()
    for caller in "ab":
        shares.enter(caller)
    both = {"a": 1, "b": 1}
    shares.begin_plan()
    shares.plan("b", 3)
    assert shares.first(both, both) == "a"
    shares.begin_plan()
    assert shares.first(both, both) == "b", "nothing of it was computed"
    shares.charge("b", 3)
    assert shares.first(both, both) == "a"
    shares.charge("b", -3)
    assert shares.first(both, both) == "b", "it was lost"


def test_callers_pay_for_computed_tokens_only() -> None:
    """Prompts wait for their images, which are encoded in pieces."""
    engine = Engine()
    (pictures,) = engine.add("pictures", request("one", 100, images=4))
    (text,) = engine.add("text", request("two", 100))
    while not (pictures.num_answer_tokens and text.num_answer_tokens):
        engine.step()
    had = engine.scheduler._shares._tokens
    assert had == {one.caller: one.num_computed_tokens for one in (pictures, text)}


def test_of_a_caller_only_the_first_is_overdue() -> None:
    """One that was preempted waits before an older one, and is admitted before it."""
    first, second, other = (
        Sequence(request(name, 10, caller=name[0])) for name in ("aa", "ab", "b")
    )
    first.waits_since_s, second.waits_since_s, other.waits_since_s = 20.0, 0.0, 1.0
    assert overdue([first, second], {}, 24.0) == []
    assert overdue([first, second, other], {}, 24.0) == [other]
    assert overdue([first, second, other], {}, 26.0) == [other, first]
    assert overdue([first], {"a": 1}, 26.0) == []


def test_a_preempted_sequence_has_not_waited_before() -> None:
    """It waits as long as others before those that are admitted past it are to give way."""
    now_s = 0.0
    engine = Engine(pages=100, clock=lambda: now_s)
    (old,) = engine.add("old", request("old", 300))
    while not old.num_answer_tokens:
        engine.step()
    now_s = 30.0
    scheduler = engine.scheduler
    scheduler._batch.preempt(old)
    (large,) = engine.add("large", request("large", 200))
    assert scheduler._batch.admit(large)
    for wait_s, late in ((1.0, False), (6.0, True)):
        now_s = 30.0 + wait_s
        (small,) = engine.add("small", request(f"small {late}", 20))
        engine.step()
        assert small in scheduler.running
        assert overtakes(small, old) == late
        scheduler.finish(small, FinishReason.EOS)


def test_a_pause_saves_up_nothing_and_forgives_nothing() -> None:
    shares = Shares()
    shares.enter("steady")
    shares.charge("steady", 1000)
    shares.enter("new")
    both = {"steady": 1, "new": 1}
    assert shares.first(both, both) == "new"
    shares.charge("new", 1)
    assert shares.first(both, both) == "steady", "it began with what the others had"
    shares.charge("new", 500)
    shares.leave("new")
    shares.charge("steady", 100)
    shares.enter("new")
    assert shares.first(both, both) == "steady"
    for caller in both:
        shares.leave(caller)
    shares.enter("new")
    shares.enter("steady")
    assert shares.first(both, both) == "steady", "after idle time all are equal, the newest first"


def test_callers_who_are_gone_are_forgotten() -> None:
    shares = Shares()
    shares.enter("steady")
    for number in range(1000):
        shares.enter(f"{number}")
        shares.leave(f"{number}")
        shares.charge("steady", 1)
    assert len(shares._tokens) < 4


def test_a_large_prompt_runs_though_many_callers_send_small_ones() -> None:
    """Each of them has one answer, and asks again when it ends."""
    now = 0.0
    engine = Engine(pages=120, clock=lambda: now)
    names = itertools.count()

    def ask(caller: str) -> Sequence:
        length = 60 + 4 * (next(names) % 5)
        sampling = SamplingParams(max_tokens=20 + 3 * (next(names) % 7), ignore_eos=True)
        return engine.add(caller, request(f"{next(names)}", length, sampling=sampling))[0]

    small = {f"caller {number}": ask(f"caller {number}") for number in range(6)}
    for _ in range(10):
        engine.step()
    [large] = engine.add("large", request("large", 380, sampling=SamplingParams(max_tokens=5)))
    for _ in range(400):
        engine.step()
        now += 0.1
        for caller, sequence in small.items():
            if sequence.finish_reason is not None:
                small[caller] = ask(caller)
        if large.num_answer_tokens:
            return
    pytest.fail("it never runs")


def test_nobody_is_preempted_for_a_prompt_that_would_not_fit_then() -> None:
    engine = Engine(pages=100)
    answers = engine.add("greedy", request("a", 40, num_choices=6))
    for _ in range(10):
        engine.step()
    engine.add("large", request("large", 370))
    for _ in range(10):
        engine.step()
    assert engine.scheduler.counters.preemptions == 0
    assert all(one in engine.scheduler.running for one in answers)
