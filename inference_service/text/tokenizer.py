"""The base class of all tokenizers: encodes text to token ids and decodes it.

Special tokens control the model, and only the template may write them. So there are two encoders: one that recognises
special tokens in text, and one that treats them as ordinary text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Final


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE (GPT-2): printable bytes map to themselves, the others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


BYTE_OF_CHARACTER: Final = _byte_of_character()
CHARACTER_OF_BYTE: Final = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}


class Tokenizer(ABC):
    """A vocabulary of byte strings.

    Attributes:
        vocab_size: Ids are less than this. A model may have more embedding rows; their ids have no text.
        special_tokens: Ids of the special tokens by their text.
        special_ids: Their ids.
        hidden_ids: The special ids that are omitted from an answer's text by default.
        added_tokens: Ids of all tokens that were added to the vocabulary, by their text: the special ones, and others
            that stand for themselves, such as `<think>`.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        special_tokens: Mapping[str, int],
        shown: Iterable[str] = (),
        added_tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Takes the vocabulary.

        Args:
            token_bytes: The bytes of each id; empty = no text.
            special_tokens: Ids of the special tokens by their text.
            shown: Special tokens that are kept in an answer's text, such as the tags around boxes.
            added_tokens: Ids of further added tokens by their text; may have the special ones too.
        """
        self._token_bytes = token_bytes
        self.vocab_size = len(token_bytes)
        self.special_tokens = dict(special_tokens)
        self.special_ids = frozenset(self.special_tokens.values())
        self.added_tokens = self.special_tokens | dict(added_tokens or {})
        self._added_ids = frozenset(self.added_tokens.values())
        self.hidden_ids = self.special_ids - {self.special_tokens[token] for token in shown}

    def texts(self, *, special: bool) -> list[bytes]:
        """The bytes of all tokens, with or without the special ones."""
        omitted = frozenset() if special else self.special_ids
        return [text for i, text in enumerate(self._token_bytes) if i not in omitted]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encodes text, recognising special tokens; not for user text in a chat."""

    @abstractmethod
    def encode_plain(self, text: str) -> list[int]:
        """Encodes text without special tokens."""

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are not valid UTF-8 become U+FFFD."""
        skipped = self.hidden_ids if skip_special_tokens else frozenset()
        data = b"".join(self.token_bytes(i) for i in token_ids if i not in skipped)
        return data.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; empty for an id without text."""
        return self._token_bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def token_string(self, token_id: int) -> str:
        """One token as a vocabulary of byte-level BPE writes it: a character for each byte; an added token's text."""
        data = self.token_bytes(token_id)
        if token_id in self._added_ids:
            return data.decode("utf-8", errors="replace")
        return "".join(CHARACTER_OF_BYTE[byte] for byte in data)

    def token_text(self, token_id: int) -> str:
        """The text of one token; bytes that are not valid UTF-8 become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")
