"""Converts the engine's log probabilities to entries with the text of the tokens."""

from __future__ import annotations

from inference_service.domain import LogprobEntry, TokenLogprob
from inference_service.engine_protocol.messages import PositionLogprobs
from inference_service.text.tokenizer import Tokenizer


def logprob_entry(tokenizer: Tokenizer, logprobs: PositionLogprobs) -> LogprobEntry:
    """The log probabilities at one position."""
    top = tuple(
        _token(tokenizer, token_id, logprob, rank)
        for rank, (token_id, logprob) in enumerate(logprobs.top, start=1)
    )
    chosen = _token(tokenizer, logprobs.token_id, logprobs.logprob, logprobs.rank)
    return LogprobEntry(chosen=chosen, top=top)


def _token(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int) -> TokenLogprob:
    return TokenLogprob(
        token_id=token_id,
        text=tokenizer.token_text(token_id),
        data=tokenizer.token_bytes(token_id),
        logprob=logprob,
        rank=rank,
    )
