"""One sequence in the engine: its tokens, its pages and its progress.

Scheduler, block manager and runner share this state.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference_service.engine.bad_words import BadWords
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    Probe,
    SamplingParams,
)


if TYPE_CHECKING:
    from inference_service.engine.constraint_state import ConstraintState

SequenceId = tuple[str, int]
"""Request id and choice index."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice of a request in the engine; equality is identity.

    Attributes:
        request: The request; never changes.
        choice_index: Index among the request's choices.
        rope_level: Level of its rotary frequencies; depends on the length of the prompt only.
        token_ids: Prompt with the text of its probe, then answer.
        num_prompt_tokens: Number of tokens of the prompt, with those of its probe.
        num_computed_tokens: Number of leading tokens whose keys and values are in the cache, or will be once the
            launched steps have run.
        num_pending: Number of tokens that launched steps sample, and that are not known before these are collected.
        pages: KV pages in order; page i holds tokens i*page_size and on.
        page_bits: The same pages as the bits of an integer, so that those of many sequences are counted at once.
        page_hashes: Hash chain over the full pages, as far as computed.
        prompt_hashes: The same for the pages of the request's prompt, which all of its choices share.
        num_published_pages: Number of leading pages added to the prefix cache.
        arrived_s: When it was queued, by the scheduler's clock.
        waits_since_s: When it was queued last, which a preemption does again.
        admitted_s: When it was first admitted to the batch.
        admission: The number of its last admission, in the order of all admissions.
        late_since: The number of the next admission when it had first waited too long; None before.
        encodings: For every run of the encoder with an image of this sequence, a function that tells its seconds.
        num_cached_tokens: Prompt tokens found in the prefix cache at the first admission; None before it.
        num_cache_write_tokens: Prompt tokens that this sequence added to the prefix cache.
        prefix_misses: Tokens not found there at the last admission, by one of `PREFIX_MISS_REASONS`.
        num_prompt_logprobs: Number of prompt positions with reported log probabilities.
        finish_reason: Set once, at the end.
        slot: Its slot while it runs; meaningless otherwise.
        epoch: How often it has left the batch; results of steps of an earlier epoch are late.
        constraint: Where the answer is in the request's constraint, if it has one.
        bad_words: The words of several tokens that the answer must not contain, if there are any.
    """

    request: EngineRequest
    choice_index: int = 0
    rope_level: int = 0
    token_ids: list[int] = field(init=False)
    num_prompt_tokens: int = field(init=False)
    num_computed_tokens: int = 0
    num_pending: int = 0
    pages: list[int] = field(default_factory=list)
    page_bits: int = 0
    page_hashes: list[bytes] = field(default_factory=list)
    prompt_hashes: list[bytes] = field(default_factory=list)
    num_published_pages: int = 0
    arrived_s: float = 0.0
    waits_since_s: float = 0.0
    admitted_s: float = 0.0
    admission: int = -1
    late_since: int | None = None
    encodings: list[Callable[[], float]] = field(default_factory=list)
    num_cached_tokens: int | None = None
    num_cache_write_tokens: int = 0
    prefix_misses: Mapping[str, int] = field(default_factory=dict)
    num_prompt_logprobs: int = 0
    finish_reason: FinishReason | None = None
    slot: int = -1
    epoch: int = 0
    constraint: ConstraintState | None = None
    bad_words: BadWords | None = field(init=False)

    def __post_init__(self) -> None:
        probe, bad = self.probe, self.sampling.bad_sequences
        self.bad_words = BadWords(bad) if bad else None
        self.token_ids = [*self.request.prompt_token_ids, *(probe.token_ids if probe else ())]
        self.num_prompt_tokens = len(self.token_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Number of tokens, with the pending ones."""
        return len(self.token_ids) + self.num_pending

    @property
    def sequence_id(self) -> SequenceId:
        """Unique among the sequences in flight."""
        return self.request.request_id, self.choice_index

    @property
    def caller(self) -> str:
        """Whose it is."""
        return self.request.caller

    @property
    def sampling(self) -> SamplingParams:
        """The sampling parameters."""
        return self.request.sampling

    @property
    def probe(self) -> Probe | None:
        """The probe that this sequence is; None = it generates an answer."""
        probes = self.request.probes
        return probes[self.choice_index] if probes else None

    @property
    def num_answer_tokens(self) -> int:
        """Number of tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether all tokens but the newest one of the answer are computed; that one may be pending."""
        return self.num_computed_tokens == self.num_tokens - 1 >= self.num_prompt_tokens

    @property
    def awaits_result(self) -> bool:
        """Whether a launched step samples its next token, or judges it as a probe."""
        return self.num_pending > 0 or self.num_computed_tokens == len(self)

    @property
    def is_masked(self) -> bool:
        """Whether a constraint applies to the next token."""
        return self.constraint is not None and self.constraint.active

    @property
    def has_mask(self) -> bool:
        """Whether only some tokens are permitted as the next one: by a constraint, or by the request's list."""
        return self.is_masked or bool(self.sampling.allowed_tokens)

    @property
    def completes_bad_words(self) -> tuple[int, ...]:
        """The tokens that would complete a bad word of several tokens as the next one."""
        if self.bad_words is None:
            return ()
        return self.bad_words.completing(self.token_ids, self.num_prompt_tokens)

    @property
    def awaits_mask(self) -> bool:
        """Whether a constraint applies later, so that the answer must not end before."""
        return self.constraint is not None and not self.constraint.active

    @property
    def top_prompt_logprobs(self) -> int | None:
        """Number of most likely tokens per prompt token; None = not requested, and for choices after the first."""
        return self.sampling.prompt_logprobs if self.choice_index == 0 else None

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log probabilities of the prompt are requested and not yet complete."""
        return (
            self.top_prompt_logprobs is not None
            and self.num_prompt_logprobs < self.num_prompt_tokens - 1
        )

    def images_between(self, start: int, end: int) -> list[ImageSpan]:
        """The images with a token in [start, end), in order."""
        images = self.request.images  # hundreds, if videos are cut into frames; in order, and apart
        first = bisect_right(images, start, key=lambda image: image.start + image.num_tokens)
        return list(
            images[first : bisect_left(images, end, lo=first, key=lambda image: image.start)]
        )

    def goes_on(self, max_model_len: int) -> bool:
        """Whether another token may be sampled, whatever the pending ones are.

        It may not if the answer ends with them because of its length, or if a constraint or bad words follow them.
        """
        if not self.num_pending:
            return True
        num_answer_tokens = self.num_answer_tokens + self.num_pending
        is_full = num_answer_tokens >= self.sampling.max_tokens or self.num_tokens >= max_model_len
        return self.constraint is None and self.bad_words is None and not is_full

    def reason_to_finish(self, max_model_len: int) -> FinishReason | None:
        """The finish reason if the sequence ends with its newest token, else None.

        An end token takes precedence over a length, and the request's length over that of the context. A complete
        constrained answer ends even if end tokens are to be ignored: nothing else is permitted then.
        """
        token, sampling = self.token_ids[-1], self.sampling
        ends = self.constraint is not None or not sampling.ignore_eos
        if token in sampling.eos_token_ids and ends:
            return FinishReason.EOS
        if token in sampling.stop_token_ids:
            return FinishReason.STOP_TOKEN
        if self.num_answer_tokens >= sampling.max_tokens:
            return FinishReason.LENGTH
        if len(self) >= max_model_len:
            return FinishReason.CONTEXT_LENGTH
        return None


def choices_of(
    request: EngineRequest, rope_level: Callable[[int], int] = lambda _: 0
) -> list[Sequence]:
    """The choices of a request, in order; equal prompts are hashed once for all of them.

    Args:
        request: The request.
        rope_level: Tells the level of the rotary frequencies by the number of tokens of a prompt.
    """
    hashes: dict[int, list[bytes]] = {}
    choices = [Sequence(request, index) for index in range(request.num_choices)]
    for choice in choices:
        choice.rope_level = rope_level(choice.num_prompt_tokens)
        # Probes of different lengths may differ in it, and so do their keys and values.
        choice.prompt_hashes = hashes.setdefault(choice.rope_level, [])
    return choices
