"""Scheduler and blocks under a simulated clock, with a fake model that notices every wrong page.

The fake model stores for each slot the whole history of the token written there. It checks that a page under a pen
has one holder and that everything a token attends to is its own history, and it derives the next token from that
history. So a leaked, shared, stale or mixed-up page shows as a failed check or as another answer.
"""

from __future__ import annotations

from hashlib import sha256

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
import pytest

from inference_service.engine import blocks as blocks_module
from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.scheduler import Chunk, Plan, Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    Probe,
    SamplingParams,
)
from inference_service.errors import ContextLengthError, ImageTooLargeError
from inference_service.measures import ENCODER_MISS_REASONS, PREFIX_MISS_REASONS


VOCAB = 3  # so few that prefixes meet by chance
PLACEHOLDER = 9
EOS = 0


def histories(request: EngineRequest, token_ids: list[int]) -> list[bytes]:
    """What the keys and values of each token depend on."""
    state = request.cache_salt
    result = []
    for index, token in enumerate(token_ids):
        seen = [
            image.key + bytes([index - image.start])
            for image in request.images
            if image.start <= index < image.start + image.num_tokens
        ]
        state = sha256(state + bytes([token]) + b"".join(seen)).digest()
        result.append(state)
    return result


def next_token(history: bytes) -> int:
    return history[0] % VOCAB


def expected_answer(request: EngineRequest, max_model_len: int) -> tuple[list[int], FinishReason]:
    sequence = Sequence(request)
    if sequence.probe is not None:
        return sequence.token_ids, FinishReason.LENGTH
    while True:
        sequence.token_ids.append(next_token(histories(request, sequence.token_ids)[-1]))
        reason = sequence.reason_to_finish(max_model_len)
        if reason is not None:
            return sequence.token_ids, reason


class FakeModel:
    """Keys and values are histories; an image's embedding is its key."""

    def __init__(self, page_size: int, encoder_cache: EncoderCache[bytes]) -> None:
        self.page_size = page_size
        self.encoder_cache = encoder_cache
        self.slots: dict[int, bytes] = {}

    def encode(self, plan: Plan) -> None:
        for _, image in plan.images:
            assert self.encoder_cache.get(image.key) is None, "encoded twice"
            self.encoder_cache.fill(image.key, image.key)

    def run(self, chunk: Chunk, running: list[Sequence]) -> int | None:
        sequence = chunk.sequence
        assert chunk.start == sequence.num_computed_tokens
        for image in sequence.images_between(chunk.start, chunk.end):
            assert self.encoder_cache.get(image.key) == image.key
        written = histories(sequence.request, sequence.token_ids)[: chunk.end]
        for index in range(chunk.start, chunk.end):
            page = sequence.pages[index // self.page_size]
            assert [other for other in running if page in other.pages] == [sequence]
            self.slots[self._slot(sequence, index)] = written[index]
        read = [self.slots.get(self._slot(sequence, index)) for index in range(chunk.end)]
        assert read == written
        return next_token(written[-1]) if chunk.samples else None

    def _slot(self, sequence: Sequence, index: int) -> int:
        return sequence.pages[index // self.page_size] * self.page_size + index % self.page_size


@st.composite
def requests(draw: st.DrawFn, request_id: str) -> EngineRequest:
    token_ids: list[int] = []
    images: list[ImageSpan] = []
    for part in draw(st.lists(st.sampled_from(["text", "text", "image"]), min_size=1, max_size=5)):
        if part == "text":
            token_ids += draw(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=5))
        else:
            num_tokens = draw(st.integers(1, 6))
            # The key stands for the content, so equal keys have equal sizes.
            key = bytes([draw(st.integers(0, 2)), num_tokens]) * 16
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
    wants_prompt_logprobs = draw(st.integers(0, 9)) == 0
    text = draw(st.none() | st.none() | st.lists(st.integers(1, VOCAB - 1), max_size=5))
    probes = () if text is None else (Probe(token_ids=tuple(text), candidate_ids=(1,)),)
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=tuple(token_ids),
        images=tuple(images),
        sampling=SamplingParams(
            max_tokens=draw(st.integers(1, 12)),
            eos_token_ids=(EOS,),
            ignore_eos=draw(st.booleans()),
            prompt_logprobs=0 if wants_prompt_logprobs and not probes else None,
        ),
        probes=probes,
        cache_salt=draw(st.sampled_from([b"", b"", b"other"])),
    )


class Serving(RuleBasedStateMachine):
    """Adds, aborts, steps and failed steps in any order; at the end everything drains."""

    @initialize(
        page_size=st.integers(1, 4),
        num_pages=st.integers(4, 24),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        encoder_tokens=st.integers(3, 12),
        caching=st.booleans(),
    )
    def start(
        self,
        *,
        page_size: int,
        num_pages: int,
        max_num_seqs: int,
        budget: int,
        encoder_tokens: int,
        caching: bool,
    ) -> None:
        self.max_model_len = min(page_size * num_pages, 40)
        self.blocks = BlockManager(num_pages, page_size, enable_prefix_caching=caching)
        self.encoder_cache: EncoderCache[bytes] = EncoderCache(encoder_tokens)
        self.scheduler = Scheduler(
            self.blocks,
            self.encoder_cache,
            max_model_len=self.max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
        )
        self.model = FakeModel(page_size, self.encoder_cache)
        self.accepted: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.budget = budget

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        sequence = Sequence(data.draw(requests(f"s{len(self.accepted)}")))
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
            self.accepted.append(sequence)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = [sequence for sequence in self.accepted if sequence.finish_reason is None]
        sequence = data.draw(st.sampled_from(alive))
        self.scheduler.finish(sequence, FinishReason.ABORTED)
        assert not sequence.pages
        self.ended.append(sequence)

    @rule()
    def step(self) -> None:
        plan = self.scheduler.schedule()
        self.model.encode(plan)
        computed = sum(chunk.end - chunk.start for chunk in plan.chunks)
        assert computed <= self.budget
        assert len({chunk.sequence for chunk in plan.chunks}) == len(plan.chunks)
        assert bool(plan.chunks) == self.scheduler.has_work, "a step without progress"
        tokens = [self.model.run(chunk, self.scheduler.running) for chunk in plan.chunks]
        for chunk, token in zip(plan.chunks, tokens, strict=True):
            if self.scheduler.commit(chunk, token) is not None:
                self.ended.append(chunk.sequence)

    @precondition(lambda self: self.scheduler.has_work)
    @rule(encoded=st.booleans())
    def fail_a_step(self, encoded: bool) -> None:
        """Out of memory: nothing is committed, the sequence scheduled last ends."""
        plan = self.scheduler.schedule()
        if encoded:
            self.model.encode(plan)
        self.encoder_cache.discard_unfilled()
        sequence = plan.chunks[-1].sequence
        self.scheduler.finish(sequence, FinishReason.ERROR)
        self.ended.append(sequence)

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
    def oldest_run(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        order = [*self.scheduler.running, *self.scheduler.waiting]
        assert order == sorted(order, key=self.accepted.index)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(50 * len(self.accepted) + 50):
            if not self.scheduler.has_work:
                break
            self.step()
        assert sorted(s.sequence_id for s in self.ended) == sorted(
            s.sequence_id for s in self.accepted
        ), "every accepted sequence ends exactly once"
        assert self.blocks.num_used == 0
        assert self.encoder_cache.reserve(b"all", self.encoder_cache.capacity_tokens), (
            "a pin leaked"
        )
        for sequence in self.accepted:
            if sequence.finish_reason not in {FinishReason.ABORTED, FinishReason.ERROR}:
                answer = expected_answer(sequence.request, self.max_model_len)
                assert (sequence.token_ids, sequence.finish_reason) == answer


Serving.TestCase.settings = settings(
    max_examples=300,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


TestServing = Serving.TestCase


def run_until_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine must fail under a mutation; shrinking is left out, one failure is enough."""
    from hypothesis import Phase
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(
        Serving.TestCase,
        "settings",
        settings(
            Serving.TestCase.settings,
            max_examples=2000,
            phases=[Phase.generate],
            database=None,
            derandomize=True,
            print_blob=False,
        ),
    )
    with pytest.raises((AssertionError, IndexError, KeyError, ExceptionGroup)):
        run_state_machine_as_test(Serving)


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
            computed = sequence.num_computed_tokens
            sequence.num_computed_tokens = len(sequence)
            self.publish(sequence)
            sequence.num_computed_tokens = computed
        return admitted

    monkeypatch.setattr(BlockManager, "admit", admit)
    run_until_broken(monkeypatch)
