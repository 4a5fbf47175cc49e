"""How long answers wait for their tokens beside prompts and images: the engine's parts on the timeline of a GPU."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count, pairwise, product
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference_service.engine import pipeline as pipeline_module
from inference_service.engine.blocks import BlockManager
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.pace import Pace
from inference_service.engine.pipeline import Pipeline
from inference_service.engine.plan import Chunk
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine.staging import Fence
from inference_service.engine.step_results import ChunkResult
from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from inference_service.kernels.pieces import Pieces
from tests.support.timeline import Timeline, use_timeline


CUDA = torch.device("cuda")
LAUNCH_S = 0.001
"""How long the host takes to launch a step."""
DECODE_S, TOKEN_S = 0.010, 0.0001
"""How long a GPU takes for a step of answers alone, and for each prompt token beside them."""


class Free:
    """A constraint that permits everything, but that has to know the token before the next one."""

    spent_s = debt_s = cost_s = 0.0
    num_left_out = 0
    active = True

    def take(self, token_id: int) -> None:
        pass


@dataclass(eq=False)
class Launched:
    chunks: Seq[Chunk]
    fence: Fence


@dataclass
class Gpu:
    """What `ModelRunner` is, on a timeline.

    Attributes:
        tokens_at: For each sequence, when the host got its tokens.
    """

    timeline: Timeline
    cache: EncoderCache[str]
    piece_s: float
    tokens_at: dict[Sequence, list[float]] = field(default_factory=dict)

    def launch(self, chunks: Seq[Chunk]) -> Launched:
        self.timeline.now += LAUNCH_S
        num_tokens = sum(chunk.end - chunk.start for chunk in chunks)
        num_decodes = sum(chunk.start >= chunk.sequence.num_prompt_tokens for chunk in chunks)
        self.timeline.queue(DECODE_S * (num_decodes > 0) + TOKEN_S * (num_tokens - num_decodes))
        fence = Fence(CUDA)
        fence.record()
        return Launched(chunks, fence)

    def collect(self, launched: Launched) -> list[ChunkResult]:
        launched.fence.wait()
        for chunk in launched.chunks:
            if chunk.samples:
                self.tokens_at.setdefault(chunk.sequence, []).append(self.timeline.now)
        return [ChunkResult(token_id=1 if chunk.samples else None) for chunk in launched.chunks]

    def pixels(self, _sequence: Sequence, _image: ImageSpan) -> memoryview:
        return memoryview(b"")

    def encode(self, images: Seq[tuple[ImageSpan, memoryview]]) -> Pieces[None]:
        for _ in range(sum(image.num_tokens for image, _ in images)):
            self.timeline.now += LAUNCH_S / 20
            self.timeline.queue(self.piece_s)
            yield
        for image, _ in images:
            self.cache.fill(image.key, "embeddings")

    def remove(self, _sequence: Sequence) -> None:
        pass


class Engine:
    """The parts of an engine whose GPU takes so long for a piece of an image."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, slowdown: float, depth: int, piece_s: float
    ) -> None:
        self.timeline = timeline = use_timeline(monkeypatch)

        def clock() -> float:
            return timeline.now

        monkeypatch.setattr(pipeline_module, "time", SimpleNamespace(monotonic=clock))
        cache: EncoderCache[Any] = EncoderCache(10_000)
        self.pace = Pace(2048, slowdown)
        self.scheduler = Scheduler(
            BlockManager(10_000, 16),
            cache,
            max_model_len=100_000,
            max_num_seqs=16,
            max_num_batched_tokens=2048,
            pace=self.pace,
            clock=clock,
        )
        self.gpu = Gpu(timeline, cache, piece_s)
        runner: Any = self.gpu
        self.pipeline = Pipeline(self.scheduler, runner, cache, self.pace, depth=depth, device=CUDA)
        self.pipeline._encoder._clock = clock
        self.numbers = count()

    def add(
        self, *, prompt: int, answer: int, image: int = 0, constrained: bool = False
    ) -> Sequence:
        number = next(self.numbers)
        span = ImageSpan(
            key=number.to_bytes(32),
            start=0,
            num_tokens=image,
            grid=(1, 2, 2),
            height=2,
            width=2,
            pixel_offset=0,
        )
        sampling = SamplingParams(max_tokens=answer, ignore_eos=True)
        request = EngineRequest(
            request_id=str(number),
            prompt_token_ids=tuple(range(1000 * number, 1000 * number + prompt)),
            images=(span,) if image else (),
            sampling=sampling,
        )
        sequence = Sequence(request)
        if constrained:
            sequence.constraint = Free()  # type: ignore[assignment]
        self.scheduler.add([sequence])
        return sequence

    def run(self, steps: int, flood: dict[str, Any] | None = None) -> None:
        """With so many requests of the flood waiting all the time."""
        for _ in range(steps):
            while flood and len(self.scheduler.waiting) < 3:
                self.add(**flood)
            self.pipeline.advance()
            self.timeline.now += LAUNCH_S / 10

    def gap_s(self, sequence: Sequence, since_s: float) -> float:
        """The mean time between two tokens."""
        times = [one for one in self.gpu.tokens_at[sequence] if one >= since_s]
        return fmean(after - before for before, after in pairwise(times))


FLOODS: dict[str, dict[str, Any]] = {
    "prompts": {"prompt": 3000, "answer": 1},
    "images": {"prompt": 410, "image": 400, "answer": 1},
    "small images": {"prompt": 50, "image": 40, "answer": 1},
    "answers": {"prompt": 200, "answer": 20},
}


FREE, CONSTRAINED, MIXED = [False, False], [True, True], [True, False]
SAMPLES = [
    *((slowdown, 1, FREE, 0.0005, "images") for slowdown in (2, 3, 4, 8)),
    (2, 0, FREE, 0.001, "images"),
    (2, 1, CONSTRAINED, 0.001, "images"),
    (2, 1, CONSTRAINED, 0.001, "prompts"),
    (2, 1, MIXED, 0.001, "answers"),
]
ROWS = [
    (*rest, flood)
    for flood in FLOODS
    for rest in product((2, 3, 4, 8), (0, 1), (FREE, CONSTRAINED, MIXED), (0.0005, 0.001))
]


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=[] if row in SAMPLES else pytest.mark.full) for row in ROWS],
    ids=str,
)
def test_answers_wait_no_longer_than_promised(
    monkeypatch: pytest.MonkeyPatch, row: tuple[float, int, list[bool], float, str]
) -> None:
    """Compared with the same answers without a flood, and the piece of an image that is computed at least.

    A constrained flood is one of constrained answers.
    """
    slowdown, depth, constrained, piece_s, flood = row
    engine = Engine(monkeypatch, slowdown, depth, piece_s)
    first, *_ = (engine.add(prompt=10, answer=9999, constrained=one) for one in constrained)
    engine.run(100)
    alone_s = engine.gap_s(first, since_s=20 * DECODE_S)
    requests = FLOODS[flood] | {"constrained": all(constrained)}
    engine.run(150, requests)
    begin_s = engine.timeline.now
    engine.run(300, requests)
    assert engine.gap_s(first, begin_s) < 1.05 * slowdown * alone_s + piece_s
    assert next(engine.numbers) > 5, "the flood gets on"
