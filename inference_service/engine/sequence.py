"""One sequence in the engine: its tokens, its pages and how far it is computed.

Owns the state that scheduler, blocks and runner share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    SamplingParams,
)


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine; equality is identity.

    Attributes:
        request: What was asked for; never changes.
        rope_level: Which rotary frequencies its keys have; of the prompt's length, whatever is computed again.
        token_ids: Prompt, then answer.
        num_computed_tokens: Tokens from the front whose keys and values are in the cache.
        pages: KV pages in order; page i holds tokens i*page_size and on.
        page_hashes: Hash chain over the full pages, as far as it was needed.
        num_published_pages: Pages from the front that were offered to the prefix cache.
        num_cached_tokens: Prompt tokens that the first admission found in the prefix cache; None before it.
        num_prompt_logprobs: Prompt positions whose log probabilities are reported already.
        finish_reason: Set once, at the end.
    """

    request: EngineRequest
    rope_level: int = 0
    token_ids: list[int] = field(init=False)
    num_computed_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    num_published_pages: int = 0
    num_cached_tokens: int | None = None
    num_prompt_logprobs: int = 0
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def sequence_id(self) -> str:
        """The request's id."""
        return self.request.sequence_id

    @property
    def sampling(self) -> SamplingParams:
        """How tokens are chosen."""
        return self.request.sampling

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the answer."""
        return len(self.request.prompt_token_ids)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether only the newest token of the answer is left to compute."""
        return self.num_computed_tokens == len(self) - 1 >= self.num_prompt_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log probabilities of the prompt are asked for and not yet complete."""
        return (
            self.sampling.prompt_logprobs is not None
            and self.num_prompt_logprobs < self.num_prompt_tokens - 1
        )

    def images_between(self, start: int, end: int) -> list[ImageSpan]:
        """The images with a token in [start, end), in order."""
        return [
            image
            for image in self.request.images
            if image.start < end and start < image.start + image.num_tokens
        ]

    def reason_to_finish(self, max_model_len: int) -> FinishReason | None:
        """Why the sequence ends with its newest token, or None if it goes on.

        An end token decides before a length, and the caller's own length before the context's.
        """
        token, sampling = self.token_ids[-1], self.sampling
        if token in sampling.eos_token_ids and not sampling.ignore_eos:
            return FinishReason.EOS
        if token in sampling.stop_token_ids:
            return FinishReason.STOP_TOKEN
        if self.num_answer_tokens >= sampling.max_tokens:
            return FinishReason.LENGTH
        if len(self) >= max_model_len:
            return FinishReason.CONTEXT_LENGTH
        return None
