"""Text to token ids and back: what all tokenizers have in common.

Special tokens steer the model; only the template may write them. So there are two encoders: one that reads them in
text, and one for which their spelling is text like any other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence


class Tokenizer(ABC):
    """A vocabulary of byte strings.

    Attributes:
        vocab_size: Ids are below it. A model may have more rows than that; their ids have no text.
        special_tokens: Spelling to id of the special tokens.
        special_ids: Their ids.
        hidden_ids: The special ids that an answer's text does not show unless asked to.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_tokens: Mapping[str, int],
        shown: Iterable[str] = (),
    ) -> None:
        """Takes the vocabulary.

        Args:
            token_bytes: The bytes of each id; empty = no text.
            special_tokens: Spelling to id.
            shown: Special tokens that are part of an answer's text, as the tags around boxes are.
        """
        self._token_bytes = token_bytes
        self.vocab_size = len(token_bytes)
        self.special_tokens = dict(special_tokens)
        self.special_ids = frozenset(self.special_tokens.values())
        self.hidden_ids = self.special_ids - {self.special_tokens[token] for token in shown}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids; spellings of special tokens become these. For text that no user wrote."""

    @abstractmethod
    def encode_plain(self, text: str) -> list[int]:
        """Token ids, never a special one."""

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are not UTF-8 are left out."""
        skipped = self.hidden_ids if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(i) for i in token_ids if i not in skipped)
        return data.decode("utf-8", errors="ignore")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; none for an id without text."""
        return self._token_bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def token_text(self, token_id: int) -> str:
        """The text of one token; bytes that are not UTF-8 by themselves become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")
