"""Byte-level BPE tokenizers with the `tokenizers` library, from tokenizer.json, or from vocabulary and merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
import re
from typing import Final

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from inference_service.text.model_files import (
    MERGES_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    AddedToken,
    read_added_tokens,
    read_text,
)
from inference_service.text.tokenizer import BYTE_OF_CHARACTER, Tokenizer


QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Splits text into words where only vocabulary and merges are stored: that of Qwen2 and its successors."""


_SLICE_CHARACTERS: Final = 2**16
"""A longer text is encoded in slices: the library needs hundreds of bytes for every character."""
_CUT: Final = re.compile(
    "(?<=[A-Za-z])(?=[ \n][A-Za-z])|(?<=[\u4e00-\u9fff])(?=[\uff0c\u3002\n][\u4e00-\u9fff])"
)
"""A place between words, where no token of the tokenizers in use spans; `_can_be_cut` tries it."""
_PROBE: Final = (
    "Words, and more words\nand lines with 12 numbers\nIt's  spaced out  and\ttabs. "
    "\u4e2d\u6587\uff0c\u8fd8\u6709\u3002\u66f4\u591a\n\u6587\u5b57 e\u0301 and the end"
)


class JsonTokenizer(Tokenizer):
    """A tokenizer of tokenizer.json: byte-level BPE, or one whose pieces are text with a mark for spaces."""

    def __init__(
        self, definition: str, added: Sequence[AddedToken] = (), *, any_kind: bool = False
    ) -> None:
        """Takes a tokenizer.

        Args:
            definition: The text of a tokenizer.json.
            added: Added tokens that it may lack, or may define otherwise, in the order of their ids.
            any_kind: It need not be byte-level BPE.

        Raises:
            ValueError: It is malformed, or not byte-level BPE, or an added token would have another id.
        """
        self._all = _load(definition, added)
        self._plain = _load(definition, added)
        self._plain.encode_special_tokens = True  # special tokens in the text are ordinary text
        is_byte_level = isinstance(self._all.decoder, tokenizers.decoders.ByteLevel) or (
            any_kind and _has_byte_level(definition)
        )
        if not is_byte_level and not any_kind:
            raise ValueError("tokenizer.json: only byte-level BPE is supported")
        known = self._all.get_added_tokens_decoder()
        self._slice_characters = _SLICE_CHARACTERS if self._can_be_cut(known) else None
        vocabulary = self._all.get_vocab(with_added_tokens=True)
        bytes_of = _bytes_of if is_byte_level else _bytes_of_piece
        token_bytes = [b""] * (max(vocabulary.values()) + 1)
        for token, token_id in vocabulary.items():
            is_added = token_id in known
            token_bytes[token_id] = token.encode() if is_added else bytes_of(token)
        super().__init__(
            token_bytes,
            {token.content: token_id for token_id, token in known.items() if token.special},
            added_tokens={token.content: token_id for token_id, token in known.items()},
        )

    @classmethod
    def from_dir(cls, model_dir: Path, *, any_kind: bool = False) -> JsonTokenizer:
        """Reads tokenizer.json, or else vocab.json and merges.txt, and the added tokens of other files.

        Raises:
            OSError: A file is missing.
            ValueError: A file is malformed, or not byte-level BPE.
        """
        if (model_dir / TOKENIZER_FILE).is_file():
            definition = read_text(model_dir / TOKENIZER_FILE)
        else:
            definition = _definition(
                read_text(model_dir / VOCABULARY_FILE), read_text(model_dir / MERGES_FILE)
            )
        return cls(definition, read_added_tokens(model_dir), any_kind=any_kind)

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        return self._encode(self._all, text)

    def encode_plain(self, text: str) -> list[int]:
        """See `Tokenizer.encode_plain`."""
        return self._encode(self._plain, text)

    def _encode(self, tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
        return [
            token_id
            for piece in _slices(text, self._slice_characters)
            for token_id in _encoded(tokenizer, piece)
        ]

    def _can_be_cut(self, added: Mapping[int, tokenizers.AddedToken]) -> bool:
        """Whether a text has the same tokens as its slices together."""
        if any(_CUT.search(token.content) for token in added.values()):
            return False
        return all(
            [i for piece in _slices(_PROBE, 1) for i in _encoded(tokenizer, piece)]
            == list(_encoded(tokenizer, _PROBE))
            for tokenizer in (self._all, self._plain)
        )


def _slices(text: str, characters: int | None) -> Iterator[str]:
    """Pieces of about so many characters that end between words; None = the whole text."""
    start = 0
    while characters is not None and len(text) - start > characters:
        cut = _CUT.search(text, start + characters)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _encoded(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    # Unlike `encode`, which keeps the interpreter's lock, and with less memory, as it notes no offsets.
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return list(encoding.ids)


def _load(definition: str, added: Sequence[AddedToken]) -> tokenizers.Tokenizer:
    try:
        loaded = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises no narrower exception
        raise ValueError(f"tokenizer.json is not a definition of a tokenizer: {error}") from error
    loaded.no_truncation()
    loaded.no_padding()
    known = loaded.get_added_tokens_decoder()
    for token in added:
        wanted = tokenizers.AddedToken(token.text, special=token.special, **token.options)
        if repr(known.get(token.token_id)) != repr(wanted):
            add = loaded.add_special_tokens if token.special else loaded.add_tokens
            add([wanted])
        if loaded.token_to_id(token.text) != token.token_id:
            raise ValueError(
                f"the added token {token.text!r} has the id {token.token_id}, but {loaded.token_to_id(token.text)}"
                " in tokenizer.json: the files belong to different models"
            )
    return loaded


def _definition(vocabulary: str, merges: str) -> str:
    """The tokenizer.json of Qwen2's vocabulary and merges, as `Qwen2Tokenizer` of transformers builds it."""
    lines = [line for line in merges.splitlines() if line and not line.startswith("#version")]
    try:
        pairs = [(first, second) for first, second in (line.split(" ") for line in lines)]
        model = models.BPE(vocab=json.loads(vocabulary), merges=pairs)
    except Exception as error:  # the library raises no narrower exception
        raise ValueError(f"{VOCABULARY_FILE} or {MERGES_FILE} is malformed") from error
    built = tokenizers.Tokenizer(model)
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    return str(built.to_str())


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()  # as the library's decoder does with other characters


def _has_byte_level(definition: str) -> bool:
    """Whether the decoder of a tokenizer.json has that of byte-level BPE."""
    decoder = json.loads(definition).get("decoder") or {}
    return any(part.get("type") == "ByteLevel" for part in decoder.get("decoders", [decoder]))


def _bytes_of_piece(token: str) -> bytes:
    """The bytes of a piece of SentencePiece: U+2581 is a space, `<0x0A>` a byte."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()
