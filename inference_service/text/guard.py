"""Prevents user text from being read as special tokens, with marks that are removed after rendering.

A chat template mixes its special tokens and the texts of users in one string. Before rendering, every occurrence of a
special token in a user's text, complete or begun at its end, is broken by a mark of Unicode noncharacters. Special
tokens without a mark in the rendered string are the template's; then the marks are removed. Other text is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import re


# Noncharacters (Unicode 23.7): not for interchange, but users may still send them.
MARK = "\ufdd0"
_ITSELF, _BREAK = MARK + "\ufdd1", MARK + "\ufdd2"
CONTINUE_TAG = MARK + "\ufdd3 "
"""Marks the end of the message to continue; no protected text contains it."""
_SLICE = 2**16
_MARKS = frozenset(_ITSELF + _BREAK + CONTINUE_TAG.strip())


class SpecialTokenGuard:
    """Breaks special tokens in user text, and splits rendered strings at the template's special tokens."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        """Takes the spellings of all special tokens.

        Raises:
            ValueError: One is a single character or contains a mark, so that it cannot be broken.
        """
        tokens = sorted(special_tokens, key=len, reverse=True)
        if any(len(token) < 2 or set(token) & _MARKS for token in tokens):
            raise ValueError("tokenizer.json: a special token has one character or a noncharacter")
        whole = "|".join(map(re.escape, tokens)) or "(?!)"
        begun = {token[:length] for token in tokens for length in range(1, len(token))}
        starts = sorted(begun, key=lambda start: (len(start), start))
        at_end = "|".join(re.escape(start) + r"\s*\Z" for start in starts) or "(?!)"
        # The lookahead finds overlapping tokens. A text may also end inside a token that the next part of the message
        # completes, even with white space after it, as templates trim it.
        self._dangerous = re.compile(f"(?=(?:{whole}|{at_end}))(.)", re.DOTALL)
        self._begins = re.compile(f"(?={whole})")
        self._longest = max(map(len, tokens), default=1)
        self._whole = re.compile(f"({whole})")

    def protect(self, text: str) -> str:
        """The text with a mark after the first character of every special token."""
        escaped = text.replace(MARK, _ITSELF)
        # The many beginnings of tokens are looked for only where the text may end in one.
        end = max(0, len(escaped.rstrip()) - self._longest)
        tail = self._dangerous.sub(rf"\g<1>{_BREAK}", escaped[end:])
        return "".join((*self._protected(escaped, end), tail))

    def _protected(self, text: str, end: int) -> Iterator[str]:
        """The text up to an index, in slices: other threads wait for each search."""
        for start in range(0, end, _SLICE):
            stop = min(start + _SLICE, end)
            part, place = text[start : stop + self._longest - 1], 0
            for begin in self._begins.finditer(part):
                if begin.start() < stop - start:
                    yield part[place : begin.start() + 1]
                    yield _BREAK
                    place = begin.start() + 1
            yield part[place : stop - start]

    def split(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """The pieces of a rendered string in order: (text, whether it is a special token), without marks."""
        for index, piece in enumerate(self._whole.split(rendered)):
            if index % 2:
                yield piece, True
            elif piece:
                yield piece.replace(_BREAK, "").replace(_ITSELF, MARK), False
