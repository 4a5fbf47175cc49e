"""Tokenizers from a tiktoken vocabulary, a file of byte strings and their ranks, by the `tiktoken` library."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
import re
import unicodedata

import tiktoken

from inference_service.text.tokenizer import Tokenizer


LONGEST_SPACE = 2**17
"""White space in one piece: the library's splitter overflows its stack, and panics, somewhere above 800,000."""
_LONG_SPACE = re.compile(rf"(?<!\s)\s{{{LONGEST_SPACE + 1},}}")


class TiktokenTokenizer(Tokenizer):
    """A byte-level BPE tokenizer whose merges are ranks."""

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
            ranks: Byte strings to ids, a lower id is merged earlier.
            special_tokens: Spelling to id.
            pattern: Splits text into the words within which tokens are merged.
            normalize: Text is put into Unicode's normal form NFC first.
            shown: Special tokens that are part of an answer's text.
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
        """Token ids; spellings of special tokens become these. For text that no user wrote."""
        return [
            token_id
            for piece in self._pieces(text)
            for token_id in self._encoding.encode(piece, allowed_special="all")
        ]

    def encode_plain(self, text: str) -> list[int]:
        """Token ids, never a special one."""
        return [
            token_id
            for piece in self._pieces(text)
            for token_id in self._encoding.encode_ordinary(piece)
        ]

    def _pieces(self, text: str) -> Iterator[str]:
        """The text in normal form, in one piece unless somebody sends white space by the megabyte."""
        text = unicodedata.normalize("NFC", text) if self._normalize else text
        start = 0
        for run in _LONG_SPACE.finditer(text):
            for end in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE):
                yield text[start:end]
                start = end
        yield text[start:]


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads a vocabulary file: a line for each token, base64 of its bytes and its rank.

    Raises:
        OSError: It cannot be read.
        ValueError: It is malformed, or lacks one of the 256 bytes; the text names the file.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"{path.name} is not a tiktoken vocabulary") from error
    if any(bytes([value]) not in ranks for value in range(256)):
        raise ValueError(f"{path.name} is not a tiktoken vocabulary: bytes are missing")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path.name} is not a tiktoken vocabulary: ranks are missing")
    return ranks
