"""Who runs when: the order of the queue, the budgets of a step, preemption."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.pace import Pace
from inference_service.engine.plan import Plan
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    SamplingParams,
)
from inference_service.measures import ChoiceTimings
from tests.support.image_spans import span


def make(
    *,
    pages: int = 100,
    page_size: int = 2,
    seqs: int = 8,
    budget: int = 100,
    encoder: int = 100,
    max_model_len: int = 200,
) -> Scheduler:
    return Scheduler(
        BlockManager(pages, page_size),
        EncoderCache(encoder),
        max_model_len=min(pages * page_size, max_model_len),
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
    )


def add(scheduler: Scheduler, name: str, length: int, *spans: tuple[int, int]) -> Sequence:
    """A prompt of tokens of its own; spans are (start, tokens)."""
    images = tuple(span(f"{name}{start}".encode(), start, tokens) for start, tokens in spans)
    sequence = Sequence(
        EngineRequest(
            request_id=name,
            prompt_token_ids=tuple(1000 * ord(name[0]) + i for i in range(length)),
            images=images,
            sampling=SamplingParams(max_tokens=50),
        )
    )
    scheduler.add([sequence])
    return sequence


def step(scheduler: Scheduler) -> dict[str, tuple[int, int]]:
    """Plans and commits a step; (start, end) by sequence, in order."""
    plan = scheduler.schedule()
    commit(scheduler, plan)
    return {chunk.sequence.request.request_id: (chunk.start, chunk.end) for chunk in plan.chunks}


def commit(scheduler: Scheduler, plan: Plan) -> None:
    for _, image in plan.images:
        scheduler._encoder_cache.fill(image.key, "embeddings")
    scheduler.launched(plan.chunks)
    for chunk in plan.chunks:
        scheduler.commit(chunk, 7 if chunk.samples else None)


def test_prefill_then_decode() -> None:
    scheduler = make()
    add(scheduler, "a", 5)
    assert step(scheduler) == {"a": (0, 5)}
    assert step(scheduler) == {"a": (5, 6)}


def test_decodes_come_before_chunks_before_newcomers() -> None:
    scheduler = make(budget=6)
    add(scheduler, "a", 3)
    add(scheduler, "b", 8)
    add(scheduler, "c", 2)
    assert step(scheduler) == {"a": (0, 3), "b": (0, 3)}
    assert step(scheduler) == {"a": (3, 4), "b": (3, 8)}
    assert list(step(scheduler).items()) == [("a", (4, 5)), ("b", (8, 9)), ("c", (0, 2))]


def test_short_prompts_take_turns_with_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "_measures_alone", lambda *_: False)
    scheduler = make(budget=10, pages=400)
    scheduler._pace = Pace(10, 2.0)
    for name in "abc":
        add(scheduler, name, 100)
    add(scheduler, "short", 4)
    steps = []
    while "short" not in (last := step(scheduler)):
        steps.append(last)
    assert len(steps) < 16
    seen = {name for one in steps for name in one}
    assert seen == {"a", "b", "c"}
    while scheduler.waiting or not all(one.is_decoding for one in scheduler.running):
        assert len(steps) < 100, "the oldest long prompt gets on in every other step"
        steps.append(step(scheduler))


@pytest.mark.parametrize(("seqs", "pages"), [(2, 1000), (8, 251)])
def test_prompts_that_cannot_begin_yet_take_nothing_from_those_in_progress(
    seqs: int, pages: int
) -> None:
    scheduler = make(seqs=seqs, pages=pages, page_size=10, budget=204, max_model_len=1250)
    scheduler._pace = Pace(204, 2.0)
    prompts = [add(scheduler, chr(200 + number), 1200) for number in range(8)]
    steps = 0
    while scheduler.has_work:
        steps += 1
        commit(scheduler, scheduler.schedule())
        for one in prompts:
            if one.num_answer_tokens and one.finish_reason is None:
                scheduler.finish(one, FinishReason.EOS)
    assert steps <= -(-8 * 1200 // 204) + 2


def test_no_more_sequences_than_allowed() -> None:
    scheduler = make(seqs=2)
    for name in "abc":
        add(scheduler, name, 2)
    assert set(step(scheduler)) == {"a", "b"}
    scheduler.finish(scheduler.running[0], FinishReason.ABORTED)
    assert set(step(scheduler)) == {"b", "c"}


def test_the_queue_is_in_order() -> None:
    scheduler = make(pages=10)
    add(scheduler, "a", 12)
    add(scheduler, "large", 12)
    add(scheduler, "small", 2)
    assert set(step(scheduler)) == {"a"}
    assert set(step(scheduler)) == {"a"}


def test_the_newest_is_preempted_and_computed_again() -> None:
    scheduler = make(pages=5)
    old, new = add(scheduler, "old", 4), add(scheduler, "new", 4)
    assert set(step(scheduler)) == {"old", "new"}
    assert step(scheduler) == {"old": (4, 5)}, "the last page goes to the older one"
    assert step(scheduler) == {"old": (5, 6)}, "the newer one waits with its pages"
    assert len(new.pages) == 2
    assert step(scheduler) == {"old": (6, 7)}
    assert scheduler.counters.preemptions == 1
    assert list(scheduler.waiting) == [new]
    assert (new.pages, new.num_computed_tokens, new.num_answer_tokens) == ([], 0, 1)
    scheduler.finish(old, FinishReason.ABORTED)
    # The older one took the newer one's last page; its first is still in the prefix cache.
    assert step(scheduler) == {"new": (2, 5)}
    assert new.num_cached_tokens == 0, "what the first admission found"


def test_a_chunk_that_was_not_committed_is_planned_again() -> None:
    scheduler = make(budget=3)
    add(scheduler, "a", 5)
    assert scheduler.schedule().chunks == scheduler.schedule().chunks
    assert step(scheduler) == {"a": (0, 3)}
    assert step(scheduler) == {"a": (3, 5)}


def test_images_are_encoded_when_their_first_token_is_reached() -> None:
    scheduler = make(budget=4)
    add(scheduler, "a", 10, (2, 4), (7, 2))
    starts = []
    while scheduler.running or scheduler.waiting:
        plan = scheduler.schedule()
        starts.append([image.start for _, image in plan.images])
        commit(scheduler, plan)
        if not scheduler.running[0].num_computed_tokens < 10:
            break
    assert starts == [[2], [7], []]


def test_chunks_stop_before_an_image_beyond_the_encoder_budget() -> None:
    scheduler = make(budget=10)
    add(scheduler, "a", 10, (1, 6))
    add(scheduler, "b", 20, (3, 7))
    add(scheduler, "huge", 40, (0, 30))
    assert step(scheduler) == {"a": (0, 10)}
    assert step(scheduler) == {"a": (10, 11), "b": (0, 9)}
    assert step(scheduler) == {"a": (11, 12), "b": (9, 18)}
    assert step(scheduler) == {"a": (12, 13), "b": (18, 20), "huge": (0, 7)}, "a large one alone"


def test_images_of_one_step_share_the_encoder_budget() -> None:
    scheduler = make(budget=20)
    add(scheduler, "a", 9, (2, 6))
    add(scheduler, "b", 9, (2, 6))
    add(scheduler, "c", 9, (0, 9))
    plan = scheduler.schedule()
    assert [image.num_tokens for _, image in plan.images] == [6, 6]
    assert [chunk.sequence.request.request_id for chunk in plan.chunks] == ["a", "b"]


def test_a_full_encoder_cache_holds_back_the_next_image_only() -> None:
    scheduler = make(budget=5, encoder=7)
    add(scheduler, "a", 12, (0, 7), (8, 4))
    add(scheduler, "b", 3)
    assert step(scheduler) == {"a": (0, 5)}
    assert step(scheduler) == {"a": (5, 8), "b": (0, 2)}, "its first image is needed till 7"
    assert step(scheduler) == {"a": (8, 12), "b": (2, 3)}


def test_equal_images_are_encoded_once() -> None:
    scheduler = make()
    one, two = add(scheduler, "a", 9, (2, 6)), add(scheduler, "b", 9, (3, 6))
    two.request = EngineRequest(
        request_id="b",
        prompt_token_ids=two.request.prompt_token_ids,
        sampling=two.sampling,
        images=(one.request.images[0],),
    )
    plan = scheduler.schedule()
    assert len(plan.images) == 1
    assert len(plan.chunks) == 2
    assert (scheduler.counters.encoder_queries, scheduler.counters.encoder_hits) == (2, 1)


def test_misses_of_images_tell_new_ones_from_evicted_ones() -> None:
    scheduler = make(encoder=6)
    for name in "abac":
        sequence = add(scheduler, name, 9, (2, 6))
        while scheduler.has_work:
            step(scheduler)
            if sequence.num_answer_tokens:
                scheduler.finish(sequence, FinishReason.EOS)
    # The second "a" finds its pages, so that its image is not looked up.
    assert scheduler.counters.encoder_misses == {"new": 3}
    sequence = add(scheduler, "d", 9, (2, 6))
    sequence.request = EngineRequest(
        request_id="d",
        prompt_token_ids=sequence.request.prompt_token_ids,
        sampling=sequence.sampling,
        images=(replace(sequence.request.images[0], key=b"b2".ljust(32)),),
    )
    step(scheduler)
    assert scheduler.counters.encoder_misses == {"new": 3, "evicted": 1}


def test_a_cache_smaller_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller"):
        Scheduler(
            BlockManager(2, 2),
            EncoderCache(1),
            max_model_len=5,
            max_num_seqs=1,
            max_num_batched_tokens=1,
        )


def test_it_tells_how_long_a_sequence_waited_and_was_computed():
    now_s = 10.0
    scheduler = Scheduler(
        BlockManager(100, 2),
        EncoderCache(100),
        max_model_len=200,
        max_num_seqs=1,
        max_num_batched_tokens=100,
        clock=lambda: now_s,
    )
    first, second = (add(scheduler, name, 4) for name in "ab")
    now_s = 11.0
    (chunk,) = scheduler.schedule().chunks
    now_s = 15.0
    scheduler.launched([chunk])
    scheduler.commit(chunk, 1)
    first.encodings += [lambda: 0.5, lambda: 0.25]
    assert scheduler.timings(first) == ChoiceTimings(queue_s=1.0, prefill_s=4.0, encode_s=0.75)
    scheduler.finish(first, FinishReason.EOS)
    (chunk,) = scheduler.schedule().chunks
    now_s = 15.5
    scheduler.launched([chunk])
    scheduler.commit(chunk, 1)
    assert scheduler.timings(second) == ChoiceTimings(queue_s=5.0, prefill_s=0.5)
