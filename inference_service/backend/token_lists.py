"""Turns the tokens and words to which a request restricts its answers into what the engine takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from inference_service.errors import InvalidArgumentError
from inference_service.sampling import SamplingOptions
from inference_service.text.tokenizer import Tokenizer


_WORD_BYTES: Final = 4
MAX_BAD_TOKENS: Final = 8192
"""Of all words together: each step of an answer compares them with its newest tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLists:
    """What the engine is told; the fields are those of its `SamplingParams`.

    Attributes:
        allowed: `allowed_tokens`.
        bad_tokens: Bad words of a single token.
        bad_sequences: `bad_sequences`.
    """

    allowed: bytes = b""
    bad_tokens: tuple[int, ...] = ()
    bad_sequences: tuple[tuple[int, ...], ...] = ()


NO_LISTS: Final = TokenLists()


def token_lists(options: SamplingOptions, tokenizer: Tokenizer, vocab_size: int) -> TokenLists:
    """The lists of a request.

    Args:
        options: Its settings; the allowed ids are in the vocabulary.
        tokenizer: The model's.
        vocab_size: Width of its logits.

    Raises:
        InvalidArgumentError: A word has no tokens, they have too many, or they leave no token to sample.
    """
    allowed, words = options.allowed_token_ids or (), options.bad_words or ()
    sequences = dict.fromkeys(each for word in words for each in _sequences(word, tokenizer))
    if () in sequences:
        raise _refused("bad_words has a text that the model's tokenizer gives no tokens.")
    num_tokens = sum(map(len, sequences))
    if num_tokens > MAX_BAD_TOKENS:
        raise _refused(
            f"bad_words has {num_tokens} tokens, each word counted with and without a space before it, but at most"
            f" {MAX_BAD_TOKENS} are allowed."
        )
    single = {sequence[0] for sequence in sequences if len(sequence) == 1}
    if words and single.issuperset(allowed or range(vocab_size)):
        others = "of allowed_token_ids" if allowed else "of the model"
        raise _refused(f"bad_words excludes every token {others}, so that none is left to sample.")
    return TokenLists(
        allowed=_bits(allowed, vocab_size) if allowed else b"",
        bad_tokens=tuple(sorted(single)),
        # Others contain a token that is never sampled.
        bad_sequences=tuple(each for each in sequences if single.isdisjoint(each)),
    )


def _sequences(word: str, tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """The tokens of a word, as it is at the beginning of a text and behind another word."""
    bare = word.lstrip(" ")
    if not bare:
        yield tuple(tokenizer.encode(word))
        return
    yield tuple(tokenizer.encode(bare))
    yield tuple(tokenizer.encode(f" {bare}"))


def _bits(token_ids: Iterable[int], vocab_size: int) -> bytes:
    bits = bytearray(_WORD_BYTES * -(-vocab_size // (8 * _WORD_BYTES)))
    for token_id in token_ids:
        bits[token_id >> 3] |= 1 << (token_id & 7)
    return bytes(bits)


def _refused(message: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, field="spec.sampling.bad_words")
