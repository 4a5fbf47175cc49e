"""What `ModelRunner` is, without a model, on a device that computes a step only when it is waited for.

Keys and values are histories: each place of the cache holds a digest of all tokens and images up to the one that was
written there. The device derives a history from the one before it in the cache, and the next token from the newest. So
a leaked, shared, stale or mixed-up page shows as a failed check or as another answer. Like a GPU, the device keeps the
order of the steps, and knows of them what was sent at their launch, besides its cache and the last token of each slot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Any

from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.plan import Chunk
from inference_service.engine.prompt_logprobs import due
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence
from inference_service.engine.step_results import ChunkResult
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    PositionLogprobs,
    ProbeResult,
)
from inference_service.grammar.matcher import GrammarError


VOCAB = 3  # so few that prefixes meet by chance
EOS = 0
BROKEN = b"\3"
"""The first byte of the keys of images that cannot be encoded."""


def is_constrained(request: EngineRequest) -> bool:
    """Every third seed stands for a constraint."""
    return request.sampling.seed % 3 == 2


def permitted(answer: Seq[int]) -> list[int]:
    """The tokens that the constraint permits after an answer."""
    return [sum(answer) % VOCAB, (1 + len(answer) * sum(answer)) % VOCAB]


class FollowedAnswer:
    """What `ConstraintState` is, for this constraint."""

    active = True
    spent_s = debt_s = 0.0
    cost_s = 0.02  # so that two of a caller take turns
    num_left_out = 0

    def __init__(self) -> None:
        self.taken: list[int] = []

    def take(self, token_id: int) -> None:
        if token_id not in permitted(self.taken):
            raise GrammarError("the token is not permitted")
        self.taken.append(token_id)


def new_sequence(request: EngineRequest) -> Sequence:
    sequence = Sequence(request)
    if is_constrained(request):
        sequence.constraint = FollowedAnswer()  # type: ignore[assignment]
    return sequence


def next_history(request: EngineRequest, before: bytes | None, index: int, token: int) -> bytes:
    """What the keys and values of the token at this index depend on."""
    seen = [
        image.key + bytes([index - image.start])
        for image in request.images
        if image.start <= index < image.start + image.num_tokens
    ]
    state = request.cache_salt if before is None else before
    return sha256(state + bytes([token]) + b"".join(seen)).digest()


def histories(request: EngineRequest, token_ids: Iterable[int]) -> list[bytes]:
    result: list[bytes] = []
    for index, token in enumerate(token_ids):
        result.append(next_history(request, result[-1] if result else None, index, token))
    return result


def next_token(request: EngineRequest, history: bytes, allowed: Seq[int] = range(VOCAB)) -> int:
    choice = sha256(history + request.sampling.seed.to_bytes(8, "big")).digest()[0]
    return allowed[choice % len(allowed)]


@lru_cache(1024)
def expected(request: EngineRequest, max_model_len: int) -> tuple[list[int], FinishReason]:
    """All tokens of a sequence, and why it ends, if nothing is in its way."""
    sequence = new_sequence(request)
    if sequence.probe is not None:
        return sequence.token_ids, FinishReason.LENGTH
    while True:
        answer = sequence.token_ids[sequence.num_prompt_tokens :]
        allowed = permitted(answer) if sequence.constraint else range(VOCAB)
        newest = histories(request, sequence.token_ids)[-1]
        sequence.token_ids.append(next_token(request, newest, allowed))
        reason = sequence.reason_to_finish(max_model_len)
        if reason is not None:
            return sequence.token_ids, reason


@dataclass(eq=False)
class Row:
    """What the device is sent of a chunk."""

    chunk: Chunk
    token_ids: list[int]
    pages: list[int]
    slot: int
    allowed: Seq[int]
    reported: list[int]


@dataclass(eq=False)
class Step:
    chunks: Seq[Chunk]
    rows: list[Row]
    results: list[ChunkResult] = field(default_factory=list)


class FakePace:
    """What `Pace` is, without a clock: images are encoded in two steps of three."""

    def __init__(self, runner: DelayedRunner) -> None:
        self._runner = runner
        self._count = 0

    def encode_s_beside(self, num_decodes: int, *_: Any) -> float:
        self._runner.check_that_nobody_waits(num_decodes)
        self._count += 1
        return 3600.0 if self._count % 3 else 0.0

    def note(self, *_: Any, **__: Any) -> None:
        """Learns nothing."""


class DelayedRunner:
    """The device, and the checks of what it is sent.

    Attributes:
        breaks: Where the next step runs out of memory: `encode`, `launch`, `queued` (at the end of the launch, when
            all work is queued) or `collect`; empty = nowhere.
        num_unknown: Number of tokens that the host did not know at their launch.
        num_collected: Number of steps that were collected.
    """

    def __init__(
        self, page_size: int, scheduler: Scheduler, encoder_cache: EncoderCache[bytes], depth: int
    ) -> None:
        self.breaks = ""
        self.num_unknown = 0
        self.num_collected = 0
        self.known: set[Sequence] = set()
        self.steps: list[list[Chunk]] = []
        self._page_size = page_size
        self._scheduler = scheduler
        self._encoder_cache = encoder_cache
        self._depth = depth
        self._queue: deque[Step] = deque()
        self._uncollected: list[Step] = []
        self._cache: dict[int, bytes] = {}
        self._last_tokens: dict[int, int] = {}

    def add(self, sequences: Seq[Sequence]) -> None:
        self.known.update(sequences)

    def remove(self, sequence: Sequence) -> None:
        self.known.remove(sequence)

    def distrust(self, chunks: Seq[Chunk]) -> None:
        self._uncollected = [s for s in self._uncollected if s.chunks[0] not in chunks]

    def pixels(self, sequence: Sequence, image: ImageSpan) -> memoryview:
        assert sequence in self.known, "the pixels have left"
        return memoryview(image.key)

    def encode(self, images: Seq[tuple[ImageSpan, memoryview]]) -> Iterator[None]:
        yield
        self._break("encode")
        if any(image.key[:1] == BROKEN for image, _ in images):
            raise RuntimeError("an image that the encoder does not like")
        for image, pixels in images:
            assert pixels == image.key
            assert self._encoder_cache.get(image.key) is None, "encoded twice"
            self._encoder_cache.fill(image.key, image.key)

    def launch(self, chunks: Seq[Chunk]) -> Any:
        self._break("launch")
        assert len(self._uncollected) <= self._depth
        assert sum(c.end - c.start for c in chunks) <= self._scheduler.max_num_batched_tokens
        assert len({chunk.sequence for chunk in chunks}) == len(chunks)
        assert {chunk.sequence for chunk in chunks} <= self.known
        self.check_that_nobody_waits(
            sum(chunk.start >= chunk.sequence.num_prompt_tokens for chunk in chunks)
        )
        step = Step(chunks, [self._row(chunk) for chunk in chunks])
        self._queue.append(step)
        self._break("queued")
        self._uncollected.append(step)
        self.steps.append(list(chunks))
        return step

    def collect(self, step: Step) -> list[ChunkResult]:
        assert self._uncollected.pop(0) is step
        for sequence in self._scheduler.running:
            named = len(sequence.page_hashes) * self._page_size
            assert named <= len(sequence), "a page whose tokens are not known has a name"
        self.num_collected += 1
        while not step.results:
            self._compute(self._queue.popleft())
        self._break("collect")
        return step.results

    def check_that_nobody_waits(self, num_decodes: int) -> None:
        """Answers bound the work of a step; without any, nobody may wait for the step before it."""
        for chunk in (chunk for step in self._uncollected for chunk in step.chunks):
            here = chunk.sequence in self._scheduler.running
            assert num_decodes or not (here and chunk.samples), "somebody waits for what is done"

    def _break(self, where: str) -> None:
        if self.breaks == where:
            self.breaks = ""
            raise MemoryError

    def _row(self, chunk: Chunk) -> Row:
        sequence = chunk.sequence
        assert len(sequence) + sequence.num_pending <= self._scheduler.max_model_len
        token_ids = sequence.token_ids[chunk.start : chunk.end]
        unknown = chunk.end - chunk.start - len(token_ids)
        assert unknown in {0, sequence.num_pending}
        assert not unknown or not token_ids, "only a single token may be unknown"
        self.num_unknown += unknown
        for image in sequence.images_between(chunk.start, chunk.end):
            assert self._encoder_cache.get(image.key) == image.key
        for page in sequence.pages[
            chunk.start // self._page_size : -(-chunk.end // self._page_size)
        ]:
            holders = [other for other in self._scheduler.running if page in other.pages]
            assert holders == [sequence], "a page under a pen has one holder"
        allowed: Seq[int] = range(VOCAB)
        if chunk.extends:
            num_answer_tokens = chunk.end - sequence.num_prompt_tokens
            assert num_answer_tokens < sequence.sampling.max_tokens, "past the end"
            constraint: Any = sequence.constraint  # a `FollowedAnswer`, if any
            if constraint is not None:
                assert len(constraint.taken) == num_answer_tokens, "a mask too early"
                allowed = permitted(constraint.taken)
        first, last = due(chunk)
        reported = sequence.token_ids[first + 1 : last + 1]
        pages, slot = list(sequence.pages), sequence.slot
        return Row(chunk, token_ids, pages, slot, allowed, reported)

    def _compute(self, step: Step) -> None:
        """The device's turn: first all is written, then all is read."""
        for row in step.rows:
            token_ids = row.token_ids or [self._last_tokens[row.slot]]
            for index, token in enumerate(token_ids, row.chunk.start):
                before = self._cache[self._place(row, index - 1)] if index else None
                request = row.chunk.sequence.request
                self._cache[self._place(row, index)] = next_history(request, before, index, token)
        step.results = [self._result(row) for row in step.rows]

    def _result(self, row: Row) -> ChunkResult:
        chunk, request = row.chunk, row.chunk.sequence.request
        read = [self._cache.get(self._place(row, index)) for index in range(chunk.end)]
        answer, _ = expected(request, self._scheduler.max_model_len)
        truth = histories(request, answer[: chunk.end])
        assert read[: len(truth)] == truth, "not its own history"  # a row after the end is wasted
        prompt_logprobs = tuple(
            PositionLogprobs(token_id=token, logprob=0.0, rank=1) for token in row.reported
        )
        newest = read[-1]
        assert newest is not None
        if not chunk.samples:
            return ChunkResult(prompt_logprobs=prompt_logprobs)
        if chunk.sequence.probe is not None:
            return ChunkResult(probe=ProbeResult(logprobs=(float(newest[0]),), top_id=0))
        token = next_token(request, newest, row.allowed)
        self._last_tokens[row.slot] = token
        return ChunkResult(token_id=token, prompt_logprobs=prompt_logprobs)

    def _place(self, row: Row, index: int) -> int:
        return row.pages[index // self._page_size] * self._page_size + index % self._page_size
