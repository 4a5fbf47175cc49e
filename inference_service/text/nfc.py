"""Unicode's normalization form C (UAX 15), in time that grows as the text does."""

from __future__ import annotations

from itertools import groupby
import re
from typing import Final
import unicodedata
from unicodedata import combining


_MARKS: Final = 30
"""A letter has no more marks in any language (UAX 15, Stream-Safe Text Format)."""
_RUN: Final = re.compile(rf"[^\x00-\u02ff]{{{_MARKS + 1},}}")  # combining marks begin at U+0300


def to_nfc(text: str) -> str:
    """The text in NFC.

    The library sorts the marks of a letter by comparing each with the ones before it, and keeps the interpreter's lock:
    minutes for 100,000 marks in descending order. So many are sorted before.
    """
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _RUN.sub(_with_sorted_marks, text))


def _with_sorted_marks(match: re.Match[str]) -> str:
    """The text in NFD if it has many marks, which has the same NFC."""
    text = match[0]
    if sum(map(bool, map(combining, text))) <= _MARKS:
        return text
    parts: list[str] = []
    decomposed = "".join(unicodedata.normalize("NFD", character) for character in text)
    for are_marks, characters in groupby(decomposed, key=lambda one: combining(one) > 0):
        same = list(characters)
        parts += sorted(same, key=combining) if are_marks else same
    return "".join(parts)
