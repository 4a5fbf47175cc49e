"""Byte-level BPE tokenizers from tokenizer.json, with the `tokenizers` library."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from inference_service.text.tokenizer import Tokenizer


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE (GPT-2): printable bytes map to themselves, the others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


_BYTES = _byte_of_character()


class JsonTokenizer(Tokenizer):
    """A byte-level BPE tokenizer."""

    def __init__(self, definition: str) -> None:
        """Takes the text of a tokenizer.json.

        Raises:
            ValueError: It is malformed, or not byte-level BPE.
        """
        self._all = _load(definition)
        self._plain = _load(definition)
        self._plain.encode_special_tokens = True  # special tokens in the text are ordinary text
        if not isinstance(self._all.decoder, tokenizers.decoders.ByteLevel):
            raise ValueError("tokenizer.json: only byte-level BPE is supported")  # noqa: TRY004 - about a file, not a type
        added = self._all.get_added_tokens_decoder()
        vocabulary = self._all.get_vocab(with_added_tokens=True)
        token_bytes = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            is_added = token_id in added
            token_bytes[token_id] = token.encode() if is_added else _bytes_of(token)
        super().__init__(
            token_bytes,
            {token.content: token_id for token_id, token in added.items() if token.special},
        )

    @classmethod
    def from_dir(cls, model_dir: Path) -> JsonTokenizer:
        """Reads tokenizer.json.

        Raises:
            OSError: It is missing.
            ValueError: It is malformed, or not byte-level BPE.
        """
        return cls((model_dir / "tokenizer.json").read_text(encoding="utf-8"))

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return list(self._all.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """See `Tokenizer.encode_plain`."""
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _load(definition: str) -> tokenizers.Tokenizer:
    try:
        loaded = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises no narrower exception
        raise ValueError("tokenizer.json is malformed") from error
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(_BYTES[character] for character in token)
    except KeyError:
        return token.encode()  # as the library's decoder does with other characters
