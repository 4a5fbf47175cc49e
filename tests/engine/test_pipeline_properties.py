"""Scheduler, pages and pipeline at both depths, on a device that computes late and that notices every wrong page.

Whatever comes in between, an answer is the one that its request alone determines: so those of both depths are equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
import logging
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
import pytest
import torch

from inference_service.engine import blocks as blocks_module
from inference_service.engine import pipeline as pipeline_module
from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.pipeline import Pipeline
from inference_service.engine.plan import Chunk
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine.step_results import ChunkResult
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineRequest,
    FinishReason,
    ImageSpan,
    Probe,
    SamplingParams,
)
from inference_service.errors import ContextLengthError, ImageTooLargeError
from inference_service.measures import ENCODER_MISS_REASONS, PREFIX_MISS_REASONS
from tests.support.delayed_runner import (
    BROKEN,
    EOS,
    VOCAB,
    DelayedRunner,
    FakePace,
    Step,
    expected,
    new_sequence,
)


PLACEHOLDER = 9


@pytest.fixture(autouse=True)
def _no_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(pipeline_module.__name__), "disabled", True)


@st.composite
def requests(draw: st.DrawFn, request_id: str) -> EngineRequest:
    token_ids: list[int] = []
    images: list[ImageSpan] = []
    for part in draw(st.lists(st.sampled_from(["text", "text", "image"]), min_size=1, max_size=3)):
        if part == "text":
            token_ids += draw(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=3))
        else:
            num_tokens = draw(st.integers(1, 4))
            # The key stands for the content, so equal keys have equal sizes.
            key = (
                bytes([draw(st.sampled_from([0, 0, 0, 1, 1, 1, 2, 2, 2, BROKEN[0]])), num_tokens])
                * 16
            )
            images.append(
                ImageSpan(
                    key=key,
                    start=len(token_ids),
                    num_tokens=num_tokens,
                    grid=(1, 2, 2 * num_tokens),
                    height=2,
                    width=2 * num_tokens,
                    pixel_offset=0,
                )
            )
            token_ids += [PLACEHOLDER] * num_tokens
    wants_prompt_logprobs = draw(st.integers(0, 4)) == 0
    text = draw(st.none() | st.none() | st.lists(st.integers(1, VOCAB - 1), max_size=5))
    probes = () if text is None else (Probe(token_ids=tuple(text), candidate_ids=(1,)),)
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=tuple(token_ids),
        images=tuple(images),
        sampling=SamplingParams(
            max_tokens=draw(st.sampled_from([1, 2, 4, 8, 16])),
            seed=draw(st.integers(0, 5)),
            eos_token_ids=(EOS,),
            ignore_eos=draw(st.sampled_from([True, True, False])),
            prompt_logprobs=0 if wants_prompt_logprobs and not probes else None,
        ),
        probes=probes,
        cache_salt=draw(st.sampled_from([b"", b"", b"other"])),
        caller=draw(st.sampled_from(["", "", "b", "c"])),
    )


class Serving(RuleBasedStateMachine):
    """Adds, aborts, stops, steps and failed steps in any order; at the end everything drains."""

    now_s = step_s = 0.0

    @initialize(
        depth=st.integers(0, 1),
        page_size=st.integers(1, 4),
        num_pages=st.integers(4, 12),
        max_num_seqs=st.integers(2, 5),
        budget=st.integers(3, 12),
        encoder_tokens=st.integers(3, 12),
        caching=st.sampled_from([True, True, False]),
        step_s=st.sampled_from([0.0, 0.4, 3.0]),
    )
    def start(
        self,
        *,
        depth: int,
        page_size: int,
        num_pages: int,
        max_num_seqs: int,
        budget: int,
        encoder_tokens: int,
        caching: bool,
        step_s: float,
    ) -> None:
        self.now_s, self.step_s = 0.0, step_s  # so that sequences wait too long in some steps
        self.max_model_len = min(page_size * num_pages, 40)
        self.blocks = BlockManager(num_pages, page_size, enable_prefix_caching=caching)
        self.encoder_cache: EncoderCache[Any] = EncoderCache(encoder_tokens)
        self.scheduler = Scheduler(
            self.blocks,
            self.encoder_cache,
            max_model_len=self.max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            clock=lambda: self.now_s,
        )
        self.runner = DelayedRunner(page_size, self.scheduler, self.encoder_cache, depth)
        self.pipeline = Pipeline(
            self.scheduler,
            self.runner,  # type: ignore[arg-type]
            self.encoder_cache,
            FakePace(self.runner),  # type: ignore[arg-type]
            depth=depth,
            device=torch.device("cpu"),
        )
        self.accepted: list[Sequence] = []
        self.stops: dict[str, int] = {}
        self.answers: dict[str, list[ChoiceOutput]] = defaultdict(list)

    @rule(data=st.data(), stop=st.none() | st.none() | st.integers(1, 8))
    def add(self, data: st.DataObject, stop: int | None) -> None:
        """Queues a request; its answer is stopped after `stop` tokens, as if they had the text of a stop string."""
        sequence = self.new_sequence(data, f"s{len(self.accepted)}")
        images = sequence.request.images
        too_long = len(sequence) >= self.max_model_len
        too_large = any(i.num_tokens > self.encoder_cache.capacity_tokens for i in images)
        try:
            self.scheduler.add([sequence])
        except ContextLengthError:
            assert too_long
        except ImageTooLargeError:
            assert too_large
        else:
            assert not too_long
            assert not too_large
            self.runner.add([sequence])
            self.accepted.append(sequence)
            if stop is not None:
                self.stops[sequence.request.request_id] = stop

    def new_sequence(self, data: st.DataObject, request_id: str) -> Sequence:
        return new_sequence(data.draw(requests(request_id)))

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data(), really=st.sampled_from([True, False, False]))
    def abort(self, data: st.DataObject, *, really: bool) -> None:
        if not really:
            return
        alive = [sequence for sequence in self.accepted if sequence.finish_reason is None]
        self.end(data.draw(st.sampled_from(alive)))

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    def step(self) -> None:
        self.now_s += self.step_s
        had_work = self.scheduler.has_work
        before = self.pipeline.num_launched + self.runner.num_collected
        outputs = self.pipeline.advance()
        after = self.pipeline.num_launched + self.runner.num_collected
        assert after > before or not had_work, "a step without progress"
        self.take(outputs)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(where=st.sampled_from(["encode", "launch", "queued", "collect", "", "", "", "", ""]))
    def run_out_of_memory(self, where: str) -> None:
        self.runner.breaks = where

    def take(self, outputs: Iterable[ChoiceOutput]) -> None:
        for output in outputs:
            answer = self.answers[output.request_id]
            assert not answer or answer[-1].finish_reason is None, "an output after the end"
            answer.append(output)
            if output.finish_reason is None and len(self.tokens(answer)) == self.stops.get(
                output.request_id
            ):
                [sequence] = self.scheduler.of_request(output.request_id)
                self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        """What the front is told of an abort."""
        self.pipeline.end(sequence, FinishReason.ABORTED)
        assert not sequence.pages
        request_id = sequence.request.request_id
        self.answers[request_id].append(ChoiceOutput.aborted(request_id, 0))

    @staticmethod
    def tokens(answer: Iterable[ChoiceOutput]) -> list[int]:
        return [token for output in answer for token in output.token_ids]

    @invariant()
    def hits_and_misses_add_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        counters = self.scheduler.counters
        for queries, hits, misses, reasons in (
            (
                counters.prefix_queries,
                counters.prefix_hits,
                counters.prefix_misses,
                PREFIX_MISS_REASONS,
            ),
            (
                counters.encoder_queries,
                counters.encoder_hits,
                counters.encoder_misses,
                ENCODER_MISS_REASONS,
            ),
        ):
            assert queries == hits + misses.total()
            assert set(misses) <= set(reasons)

    @invariant()
    def pages_add_up(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        held = {page for sequence in self.scheduler.running for page in sequence.pages}
        assert self.blocks.num_used == len(held)
        assert not any(sequence.pages for sequence in self.scheduler.waiting)
        assert self.encoder_cache.num_tokens <= self.encoder_cache.capacity_tokens
        assert len(self.scheduler.running) <= self.scheduler.max_num_seqs

    @invariant()
    def oldest_of_each_caller_run(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        every = [*self.scheduler.running, *self.scheduler.waiting]
        for caller in {sequence.caller for sequence in every}:
            order = [sequence for sequence in every if sequence.caller == caller]
            assert order == sorted(order, key=self.accepted.index)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.runner.breaks = ""
        for _ in range(100 * len(self.accepted) + 50):
            if not self.scheduler.has_work and self.pipeline.is_empty:
                break
            self.step()
        assert self.pipeline.is_empty
        assert self.blocks.num_used == 0
        assert not self.runner.known
        assert self.encoder_cache.reserve(b"all", self.encoder_cache.capacity_tokens), (
            "a pin leaked"
        )
        for sequence in self.accepted:
            self.check(sequence.request)

    def check(self, request: EngineRequest) -> None:
        """Every accepted request ends exactly once, and nothing is missing, repeated or different before that."""
        answer = self.answers[request.request_id]
        tokens, prompt = self.tokens(answer), list(request.prompt_token_ids)
        of_prompt = [entry.token_id for output in answer for entry in output.prompt_logprobs]
        token_ids, reason = self.expected(request)
        wanted = [] if request.probes else token_ids[len(prompt) :]
        wanted_of_prompt = [] if request.sampling.prompt_logprobs is None else prompt[1:]
        if answer[-1].finish_reason in {FinishReason.ABORTED, FinishReason.ERROR}:
            wanted, wanted_of_prompt = wanted[: len(tokens)], wanted_of_prompt[: len(of_prompt)]
            assert len(tokens) <= self.stops.get(request.request_id, len(tokens))
        else:
            assert answer[-1].finish_reason == reason
            assert (answer[-1].probe is not None) == bool(request.probes)
            assert not any(self.is_broken(image) for image in request.images)
        assert (tokens, of_prompt) == (wanted, wanted_of_prompt)

    def expected(self, request: EngineRequest) -> tuple[list[int], FinishReason]:
        return expected(request, self.max_model_len)

    @staticmethod
    def is_broken(image: ImageSpan) -> bool:
        return image.key[:1] == BROKEN


Serving.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


TestServing = Serving.TestCase


def run_until_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine must fail under a mutation; shrinking is left out, one failure is enough."""
    monkeypatch.setattr(
        Serving.TestCase,
        "settings",
        settings(
            Serving.TestCase.settings,
            max_examples=1000,
            phases=[Phase.generate],
            database=None,
            derandomize=True,
            print_blob=False,
        ),
    )
    with pytest.raises((AssertionError, IndexError, KeyError, ValueError, ExceptionGroup)):
        run_state_machine_as_test(Serving)


# Pages


def test_notices_a_prefix_hash_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    real = blocks_module.page_hash
    monkeypatch.setattr(
        blocks_module, "page_hash", lambda parent, tokens, _images: real(parent, tokens, [])
    )
    run_until_broken(monkeypatch)


def test_notices_a_prefix_hash_without_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    real = blocks_module.page_hash
    monkeypatch.setattr(
        blocks_module, "page_hash", lambda _parent, tokens, images: real(b"", tokens, images)
    )
    run_until_broken(monkeypatch)


def test_notices_a_hit_on_a_wrong_page(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BlockManager._find_prefix
    monkeypatch.setattr(
        BlockManager,
        "_find_prefix",
        lambda self, sequence: [(page + 1) % self.num_pages for page in real(self, sequence)],
    )
    run_until_broken(monkeypatch)


def test_notices_a_page_that_is_never_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BlockManager.release

    def release(self: BlockManager, sequence: Sequence) -> None:
        sequence.pages = sequence.pages[1:]
        real(self, sequence)

    monkeypatch.setattr(BlockManager, "release", release)
    run_until_broken(monkeypatch)


def test_notices_pages_published_before_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BlockManager.admit

    def admit(self: BlockManager, sequence: Sequence, *, use_cache: bool = True) -> bool:
        admitted = real(self, sequence, use_cache=use_cache)
        if admitted:
            self.publish(sequence, len(sequence))
        return admitted

    monkeypatch.setattr(BlockManager, "admit", admit)
    run_until_broken(monkeypatch)


# One step ahead


def test_notices_pages_published_before_their_tokens_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Scheduler.launched

    def launched(self: Scheduler, chunks: Iterable[Chunk]) -> None:
        chunks = list(chunks)
        real(self, chunks)
        for chunk in chunks:
            self._blocks.publish(chunk.sequence, chunk.end)

    monkeypatch.setattr(Scheduler, "launched", launched)
    run_until_broken(monkeypatch)


def test_notices_pages_freed_while_the_step_is_still_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages may be given away at once only because the device keeps the order of the steps."""
    real = DelayedRunner.collect

    def collect(self: DelayedRunner, step: Step) -> list[ChunkResult]:
        if len(self._queue) == 2:
            self._queue.reverse()
        return real(self, step)

    monkeypatch.setattr(DelayedRunner, "collect", collect)
    run_until_broken(monkeypatch)


def test_notices_late_results_of_an_earlier_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Scheduler.commit

    def commit(self: Scheduler, chunk: Chunk, token_id: int | None = None) -> FinishReason | None:
        return real(self, replace(chunk, epoch=chunk.sequence.epoch), token_id)

    monkeypatch.setattr(Scheduler, "commit", commit)
    run_until_broken(monkeypatch)


def test_notices_late_results_of_an_ended_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Pipeline._commit

    def commit(self: Pipeline, chunk: Chunk, result: ChunkResult) -> ChoiceOutput | None:
        chunk.sequence.finish_reason = None
        return real(self, chunk, result)

    monkeypatch.setattr(Pipeline, "_commit", commit)
    run_until_broken(monkeypatch)


def test_notices_a_mask_before_its_token_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Sequence.goes_on

    def goes_on(self: Sequence, max_model_len: int) -> bool:
        constraint, self.constraint = self.constraint, None
        result = real(self, max_model_len)
        self.constraint = constraint
        return result

    monkeypatch.setattr(Sequence, "goes_on", goes_on)
    run_until_broken(monkeypatch)


def test_notices_a_step_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Sequence, "goes_on", lambda self, _: not (self.constraint and self.num_pending)
    )
    run_until_broken(monkeypatch)


def test_notices_steps_that_go_on_after_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "revert", lambda *_: None)
    run_until_broken(monkeypatch)


def test_notices_a_step_without_bounds_while_somebody_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a prompt or an image may take is bounded by answers that go on beside it."""
    monkeypatch.setattr(Sequence, "awaits_result", False)
    run_until_broken(monkeypatch)
