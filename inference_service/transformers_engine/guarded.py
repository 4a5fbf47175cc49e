"""The model's own tokenizer, which reads special tokens that users wrote as ordinary text.

Text without marks goes to the tokenizer as it is. The marks are those of `text.guard`; a processor that expands the
placeholders of images passes them on, and does not take a marked placeholder for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import BatchEncoding

from inference_service.text.guard import MARK, SpecialTokenGuard


class GuardedTokenizer:
    """A tokenizer of the library; everything but encoding is the tokenizer's own.

    Attributes:
        reads_marks: Texts have marks; others are the tokenizer's own, whatever characters users wrote.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder
        self._special = {token.content: i for i, token in added.items() if token.special}
        self._guard = SpecialTokenGuard(self._special)
        self._tokenizer = tokenizer
        self.reads_marks = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """As the tokenizer, for one text or several."""
        texts = [text] if isinstance(text, str) else list(text)
        if not self.reads_marks or not any(MARK in one for one in texts):
            return self._tokenizer(text, **options)
        rows = [self._encode(one, adds=options.get("add_special_tokens", True)) for one in texts]
        data: dict[str, list[list[int]]] = {
            "input_ids": rows,
            "attention_mask": [[1] * len(row) for row in rows],
        }
        if options.get("return_token_type_ids"):
            data["token_type_ids"] = [[0] * len(row) for row in rows]
        return BatchEncoding(data, tensor_type=options.get("return_tensors"))

    def _encode(self, text: str, *, adds: bool) -> list[int]:
        pieces = list(self._guard.split(text))
        # Each once: a template repeats most of its own.
        plain = list(dict.fromkeys(piece for piece, is_special in pieces if not is_special))
        ids_of = dict(zip(plain, self._plain(plain), strict=True))
        ids: list[int] = []
        for piece, is_special in pieces:
            ids += [self._special[piece]] if is_special else ids_of[piece]
        if not adds:
            return ids
        before, after = self._added
        return [*before, *ids, *after]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text's ids, in one call: a text may have thousands of pieces, and a call costs more than they do."""
        if not texts:
            return []
        options = {
            "add_special_tokens": False,
            "split_special_tokens": True,
            "return_attention_mask": False,
        }
        return list(self._tokenizer(list(texts), **options)["input_ids"])

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """What the tokenizer adds before and after a text."""
        [probe] = self._plain(["a"])
        around = list(self._tokenizer("a")["input_ids"])
        before = next(
            (i for i in range(len(around)) if around[i : i + len(probe)] == probe), len(around)
        )
        return around[:before], around[before + len(probe) :]
