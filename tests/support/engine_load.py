"""A scheduler under the load of many callers, by its own clock and without a model.

Images are encoded side by side, as many tokens of them in a step as the step has; every answer is made of the token 7.
"""

from __future__ import annotations

from collections.abc import Callable, Container
import itertools

from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.pace import Pace
from inference_service.engine.plan import Chunk, Plan
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from tests.support.image_spans import span


PAGE_TOKENS = 16
STEP_S = 0.05
_names = itertools.count()


def request(
    caller: str, length: int, *, images: tuple[int, ...] = (), answer: int = 1, key: str = ""
) -> EngineRequest:
    """A request with a prompt of its own.

    Args:
        caller: Who sends it.
        length: Number of text tokens before its images.
        images: Number of tokens of each image; they follow each other.
        answer: Number of tokens of its answer.
        key: What its images show; "" = something new.
    """
    name = next(_names)
    starts = itertools.accumulate(images, initial=length)
    spans = tuple(
        span(f"{key or name} {start}".encode(), start, num_tokens)
        for start, num_tokens in zip(starts, images, strict=False)
    )
    return EngineRequest(
        request_id=f"{name}",
        prompt_token_ids=tuple(10 + (name + i) % 1000 for i in range(length + sum(images))),
        images=spans,
        sampling=SamplingParams(max_tokens=answer, ignore_eos=True),
        caller=caller,
    )


def without_images(plan: Plan, missing: Container[bytes]) -> list[Chunk]:
    """The chunks of a plan that need no image of those that are missing, by their keys."""
    return [
        chunk
        for chunk in plan.chunks
        if not any(
            image.key in missing for image in chunk.sequence.images_between(chunk.start, chunk.end)
        )
    ]


class Load:
    """Callers who send a request as soon as one of theirs has ended, besides single ones.

    Attributes:
        now_s: The time, which every step advances.
        num_ended: How many requests have ended.
        encodes: Whether steps have time for images.
    """

    def __init__(
        self,
        *,
        budget: int,
        pages: int = 4096,
        encoder_tokens: int = 1024,
        max_model_len: int = 2048,
        seqs: int = 64,
        pace: Pace | None = None,
    ) -> None:
        self.now_s = 0.0
        self.num_ended = 0
        self.encodes = True
        self.cache: EncoderCache[str] = EncoderCache(encoder_tokens)
        self.scheduler = Scheduler(
            BlockManager(pages, PAGE_TOKENS),
            self.cache,
            max_model_len=max_model_len,
            max_num_seqs=seqs,
            max_num_batched_tokens=budget,
            pace=pace,
            clock=lambda: self.now_s,
        )
        self._budget = budget
        self._always: list[tuple[Callable[[], EngineRequest], Sequence]] = []
        self._encoding: list[tuple[ImageSpan, int]] = []

    def add(self, one: EngineRequest) -> Sequence:
        sequence = Sequence(one)
        self.scheduler.add([sequence])
        return sequence

    def keep(self, count: int, make: Callable[[], EngineRequest]) -> None:
        """Keeps so many requests in flight."""
        self._always += [(make, self.add(make())) for _ in range(count)]

    def step(self) -> None:
        plan = self.scheduler.schedule()
        self._encoding += [(image, image.num_tokens) for _, image in plan.images]
        if self.encodes:
            self._encode()
        chunks = without_images(plan, {image.key for image, _ in self._encoding})
        self.scheduler.launched(chunks)
        for chunk in chunks:
            ended = self.scheduler.commit(chunk, 7 if chunk.extends else None)
            self.num_ended += ended is not None
        self.now_s += STEP_S
        self._always = [
            (make, self.add(make()) if sequence.finish_reason else sequence)
            for make, sequence in self._always
        ]

    def steps_until_first_token(self, sequence: Sequence, limit: int) -> int:
        """Runs until a sequence has its first token; `limit` if it does not have it then."""
        for count in range(limit):
            if sequence.num_answer_tokens:
                return count
            self.step()
        return limit

    def give_up_images(self) -> None:
        """What running out of memory does to images that are not encoded yet."""
        self._encoding.clear()
        self.cache.discard_unfilled()

    def _encode(self) -> None:
        share = -(-self._budget // max(1, len(self._encoding)))
        self._encoding = [(image, missing - share) for image, missing in self._encoding]
        for image, missing in self._encoding:
            if missing <= 0:
                self.cache.fill(image.key, "embeddings")
        self._encoding = [(image, missing) for image, missing in self._encoding if missing > 0]
