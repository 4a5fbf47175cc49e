"""Decodes tokens to text; the bytes of an incomplete character are held back until it is complete."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from inference_service.text.output.stage import Piece
from inference_service.text.tokenizer import Tokenizer


class Detokenizer:
    """Decodes the tokens of one answer incrementally, in O(1) per token, to whole characters.

    For any split of the tokens into pieces, the concatenated texts equal `Tokenizer.decode` of all tokens.
    """

    may_end = False

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool, shown: Iterable[str] = ()
    ) -> None:
        """Starts an answer.

        Args:
            tokenizer: The tokenizer of the tokens.
            skip_special_tokens: Omit special tokens from the text.
            shown: Special tokens that are kept nevertheless.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.hidden_ids if skip_special_tokens else frozenset()
        self._skipped -= {tokenizer.special_tokens.get(token, -1) for token in shown}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def push(self, piece: Piece) -> None:
        """Sets the text of the piece; a character that stays incomplete is dropped."""
        token_bytes = self._tokenizer.token_bytes
        data = b"".join(token_bytes(i) for i in piece.token_ids if i not in self._skipped)
        piece.text = self._decoder.decode(data, final=piece.last)
