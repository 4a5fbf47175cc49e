"""Decodes tokens to text; the bytes of an incomplete character are held back until it is complete."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from inference_service.text.output.stage import Piece
from inference_service.text.tokenizer import Tokenizer


class Detokenizer:
    """Decodes the tokens of one answer incrementally, in O(1) per token, to whole characters.

    For any split of the tokens into pieces, the concatenated texts equal `Tokenizer.decode` of all tokens, but for an
    incomplete character at their end, which is dropped.
    """

    may_end = False
    counts_tokens = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool,
        shown: Iterable[str] = (),
        marked: int | None = None,
    ) -> None:
        """Starts an answer.

        Args:
            tokenizer: The tokenizer of the tokens.
            skip_special_tokens: Omit special tokens from the text.
            shown: Special tokens that are kept nevertheless.
            marked: Id of a token whose places in the text are marked.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.hidden_ids if skip_special_tokens else frozenset()
        self._skipped -= {tokenizer.special_tokens.get(token, -1) for token in shown}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._marked = marked

    def push(self, piece: Piece) -> None:
        """Sets the text of the piece."""
        if self._marked is None or self._marked not in piece.token_ids:
            piece.text = self._decoded(piece.token_ids)
            return
        pieces: list[str] = []
        marks: list[int] = []
        for token_id in piece.token_ids:
            pieces.append(self._decoded((token_id,)))
            if token_id == self._marked:
                marks.append(sum(map(len, pieces[:-1])))
        piece.text, piece.marks = "".join(pieces), tuple(marks)

    def _decoded(self, token_ids: Iterable[int]) -> str:
        token_bytes = self._tokenizer.token_bytes
        data = b"".join(token_bytes(i) for i in token_ids if i not in self._skipped)
        return self._decoder.decode(data)
