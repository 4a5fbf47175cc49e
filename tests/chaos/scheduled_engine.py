"""A program: the real engine process with the real scheduler, pages and encoder cache around a model that is a sum.

It has few pages, so that answers are preempted, and checks before each step that no page is lost.
"""

from __future__ import annotations

import sys
import time

from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.plan import Chunk
from inference_service.engine.process import main
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import choices_of
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
)


NUM_PAGES, PAGE_SIZE = 24, 8
MAX_MODEL_LEN = 160
STEP_S = 0.002
LETTERS = 26


def letter(prompt_token_ids: tuple[int, ...], index: int, choice: int) -> int:
    """The token at `index` of an answer: a small letter, as an id of the test's byte tokens."""
    return ord("a") - 33 + (sum(prompt_token_ids) + 7 * index + 3 * choice) % LETTERS


class ScheduledCore:
    """What `EngineCore` is, without a model."""

    def __init__(self, config: EngineConfig) -> None:
        del config
        self._blocks = BlockManager(NUM_PAGES, PAGE_SIZE, enable_prefix_caching=True)
        self._encoder_cache: EncoderCache[bytes] = EncoderCache(64)
        self._scheduler = Scheduler(
            self._blocks,
            self._encoder_cache,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=6,
            max_num_batched_tokens=48,
        )
        self._steps = 0

    @property
    def ready(self) -> EngineReady:
        return EngineReady(
            device="none",
            dtype="float32",
            max_model_len=MAX_MODEL_LEN,
            kv_pages_total=NUM_PAGES,
            kv_page_tokens=PAGE_SIZE,
            kv_bytes_per_token=1,
            weight_bytes=0,
            parts=(("language", 1),),
        )

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_pages_total=NUM_PAGES,
            kv_pages_used=self._blocks.num_used,
            preemptions=self._scheduler.counters.preemptions,
            steps=self._steps,
        )

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        del pixels
        self._scheduler.add(choices_of(request))

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        for sequence in self._scheduler.of_request(request_id):
            if choice_index in (None, sequence.choice_index):
                self._scheduler.finish(sequence, FinishReason.ABORTED)

    def step(self) -> list[ChoiceOutput]:
        self._steps += 1
        time.sleep(STEP_S)
        plan = self._scheduler.schedule()
        self._check_pages()
        for _, image in plan.images:
            self._encoder_cache.fill(image.key, image.key)
        self._scheduler.launched(plan.chunks)
        outputs = [self._commit(chunk) for chunk in plan.chunks]
        return [output for output in outputs if output is not None]

    def _check_pages(self) -> None:
        held = {page for sequence in self._scheduler.running for page in sequence.pages}
        assert self._blocks.num_used == len(held), "a page is lost"

    def _commit(self, chunk: Chunk) -> ChoiceOutput | None:
        sequence, token = chunk.sequence, None
        if chunk.samples:
            prompt = sequence.request.prompt_token_ids
            token = letter(prompt, sequence.num_answer_tokens, sequence.choice_index)
        is_first = sequence.num_answer_tokens == 0
        reason = self._scheduler.commit(chunk, token)
        if token is None and reason is None:
            return None
        return ChoiceOutput(
            request_id=sequence.request.request_id,
            choice_index=sequence.choice_index,
            token_ids=() if token is None else (token,),
            num_cached_tokens=sequence.num_cached_tokens if is_first else None,
            finish_reason=reason,
        )


if __name__ == "__main__":
    sys.exit(main(core_factory=ScheduledCore))
