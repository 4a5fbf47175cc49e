"""Tokenizers from a tiktoken vocabulary, a file of byte strings and ranks, with the `tiktoken` library."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
import re

import tiktoken

from inference_service.text.broken_files import what_is_wrong
from inference_service.text.nfc import to_nfc
from inference_service.text.tokenizer import Tokenizer


MAX_SPACE_LENGTH = 2**17
"""Maximum white space in one piece: the library overflows its stack, and panics, above about 800,000."""
_LONG_SPACE = re.compile(rf"(?<!\s)\s{{{MAX_SPACE_LENGTH + 1},}}")


class TiktokenTokenizer(Tokenizer):
    """A byte-level BPE tokenizer with merges defined by ranks."""

    def __init__(
        self,
        ranks: Mapping[bytes, int],
        special_tokens: Mapping[str, int],
        *,
        pattern: str,
        normalize: bool,
        shown: Iterable[str] = (),
    ) -> None:
        """Takes a vocabulary.

        Args:
            ranks: Ids of byte strings; lower ids are merged first.
            special_tokens: Ids of the special tokens by their text.
            pattern: Splits text into words; tokens are merged within words.
            normalize: Normalise text to NFC first.
            shown: Special tokens that are kept in an answer's text.
        """
        token_bytes = [b""] * (max(*ranks.values(), *special_tokens.values()) + 1)
        for token, token_id in ranks.items():
            token_bytes[token_id] = token
        for text, token_id in special_tokens.items():
            token_bytes[token_id] = text.encode()
        super().__init__(token_bytes, special_tokens, shown)
        self._normalize = normalize
        self._encoding = tiktoken.Encoding(
            "model",
            pat_str=pattern,
            mergeable_ranks=dict(ranks),
            special_tokens=dict(special_tokens),
        )

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return [
            token_id
            for piece in self._pieces(text)
            for token_id in self._encoding.encode(piece, allowed_special="all")
        ]

    def encode_plain(self, text: str) -> list[int]:
        """See `Tokenizer.encode_plain`."""
        return [
            token_id
            for piece in self._pieces(text)
            for token_id in self._encoding.encode_ordinary(piece)
        ]

    def _pieces(self, text: str) -> Iterator[str]:
        """The normalised text, split only inside very long white space."""
        text = to_nfc(text) if self._normalize else text
        start = 0
        for run in _LONG_SPACE.finditer(text):
            for end in range(run.start() + MAX_SPACE_LENGTH, run.end(), MAX_SPACE_LENGTH):
                yield text[start:end]
                start = end
        yield text[start:]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads a vocabulary file: a line for each token, base64 of its bytes and its rank.

    Raises:
        OSError: It cannot be read.
        ValueError: It is malformed, or lacks one of the 256 bytes; the message names the file.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ValueError(what_is_wrong(path, "a tiktoken vocabulary")) from error
    if any(bytes([value]) not in ranks for value in range(256)):
        raise ValueError(f"{path.name} is not a tiktoken vocabulary: bytes are missing")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path.name} is not a tiktoken vocabulary: ranks are missing")
    return ranks
