"""A model's vocabulary for llguidance: the same for every kind of tokenizer. Torch-free.

Special tokens, and all other tokens added to the vocabulary (`<think>`, `<tool_call>`), are never part of text: a
grammar in Lark notation names them without quotes, and within quotes or a JSON string the same characters are several
ordinary tokens.
"""

from __future__ import annotations

from pathlib import Path
import re
from typing import TYPE_CHECKING

from inference_service.families.registry import family_of, load_spec
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer


if TYPE_CHECKING:
    from llguidance import LLTokenizer


class _Words:
    """What `TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(size)]
        added = set(tokenizer.added_tokens.values())
        self.special_token_ids = sorted(token_id for token_id in added if token_id < size)
        self._tokenizer = tokenizer
        self._added = re.compile("|".join(map(re.escape, tokenizer.added_tokens)) or r"(?!)")
        self._bytes = {
            token: token_id
            for token_id, token in enumerate(self.tokens)
            if len(token) == 1 and token_id not in added
        }

    def __call__(self, text: str) -> list[int]:
        """The ordinary tokens of a text that a grammar enforces; together they are exactly this text."""
        if not isinstance(text, str):
            raise TypeError("text, not bytes")  # how `TokenizerWrapper` learns what it may pass
        pieces: list[str] = []
        start = 0
        for match in self._added.finditer(text):  # cut, it is not recognised
            pieces += [text[start : match.start() + 1], text[match.start() + 1 : match.end()]]
            start = match.end()
        pieces.append(text[start:])
        ids = [token_id for piece in pieces for token_id in self._tokenizer.encode_plain(piece)]
        data = text.encode()
        if b"".join(self.tokens[token_id] for token_id in ids) == data:
            return ids
        # The tokenizer normalises text, which would no longer be what the grammar enforces.
        return [self._bytes[data[i : i + 1]] for i in range(len(data))]


def vocabulary_of(tokenizer: Tokenizer, size: int, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        size: Width of the model's logits; ids beyond the tokenizer's have no text and are never permitted.
        eos_token_ids: The model's end tokens; all of them are permitted where a grammar permits the end.
    """
    # A tenth of a second, in the start of an engine that may never need it.
    from llguidance import LLTokenizer, TokenizerWrapper  # noqa: PLC0415

    words = TokenizerWrapper(_Words(tokenizer, size, eos_token_ids[0]))
    return LLTokenizer(words, n_vocab=size, eos_token=list(eos_token_ids))


def load_vocabulary(
    model_dir: Path, size: int | None = None, eos_token_ids: tuple[int, ...] = ()
) -> LLTokenizer:
    """The vocabulary of the model in a directory; takes a second for 150,000 tokens.

    Args:
        model_dir: The directory.
        size: Width of the logits of a model of any family; None = it is of one of ours.
        eos_token_ids: The end tokens of the former.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is malformed or does not match the model.
    """
    if size is not None:
        return vocabulary_of(JsonTokenizer.from_dir(model_dir, any_kind=True), size, eos_token_ids)
    spec = load_spec(model_dir)
    tokenizer, _ = family_of(spec).load_text(model_dir, spec)
    return vocabulary_of(tokenizer, spec.decoder.vocab_size, spec.eos_token_ids)
