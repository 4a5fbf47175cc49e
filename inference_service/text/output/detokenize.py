"""From a stream of tokens to a stream of text.

Owns the bytes of a character whose tokens have not all come yet.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from inference_service.text.tokenizer import Tokenizer


class Detokenizer:
    """Decodes the tokens of one answer as they come: O(1) a token, whole characters only.

    However the tokens are cut into pushes, the pieces together are `Tokenizer.decode` of all of them.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special_tokens: bool, shown: Iterable[str] = ()
    ) -> None:
        """Begins an answer.

        Args:
            tokenizer: Whose tokens they are.
            skip_special_tokens: Leave special tokens out of the text.
            shown: Spellings of special tokens that are not left out.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.hidden_ids if skip_special_tokens else frozenset()
        self._skipped -= {tokenizer.special_tokens.get(token, -1) for token in shown}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that is whole now."""
        token_bytes = self._tokenizer.token_bytes
        return self._decoder.decode(
            b"".join(token_bytes(i) for i in token_ids if i not in self._skipped)
        )

    def finish(self) -> str:
        """The rest: nothing of a character that stayed incomplete."""
        return self._decoder.decode(b"", final=True)
