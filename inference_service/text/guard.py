"""Keeps the text of users from spelling special tokens, by marks that are removed after rendering.

A chat template mixes its own special tokens with the texts of users in one string. Before that, every place where a
user's text spells a special token, or begins to, is broken by a mark: a noncharacter of Unicode and its kind. Special
tokens that are unbroken in the rendered string are the template's; afterwards the marks are removed. Text without such
places is not changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import re


# Noncharacters (Unicode 23.7): not for interchange, but a user may send them all the same.
MARK = "\ufdd0"
_ITSELF, _BREAK = MARK + "\ufdd1", MARK + "\ufdd2"
CONTINUE_TAG = MARK + "\ufdd3 "
"""Marks where a message is to be continued; no protected text contains it."""
_MARKS = frozenset(_ITSELF + _BREAK + CONTINUE_TAG.strip())


class SpecialTokenGuard:
    """Breaks the spelling of special tokens in texts, and splits rendered strings at the real ones."""

    def __init__(self, special_tokens: Iterable[str]) -> None:
        """Takes the spellings of all special tokens.

        Raises:
            ValueError: One is a single character, or contains the marks: it could not be broken.
        """
        tokens = sorted(special_tokens, key=len, reverse=True)
        if any(len(token) < 2 or set(token) & _MARKS for token in tokens):
            raise ValueError("tokenizer.json: a special token has one character or a noncharacter")
        whole = "|".join(map(re.escape, tokens)) or "(?!)"
        begun = {token[:length] for token in tokens for length in range(1, len(token))}
        at_end = "|".join(re.escape(start) + r"\s*\Z" for start in sorted(begun, key=len)) or "(?!)"
        # Looking ahead finds spellings that overlap. A text may also end in the middle of one that the next part of
        # the message completes; white space behind it does not help, for templates trim it.
        self._dangerous = re.compile(f"(?=(?:{whole}|{at_end}))(.)", re.DOTALL)
        self._whole = re.compile(f"({whole})")

    def protect(self, text: str) -> str:
        """The text with a mark behind the first character of every spelling."""
        escaped = text.replace(MARK, _ITSELF)
        return self._dangerous.sub(rf"\g<1>{_BREAK}", escaped)

    def split(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """The pieces of a rendered string, in order: (text, whether it is a special token); marks are gone."""
        for index, piece in enumerate(self._whole.split(rendered)):
            if index % 2:
                yield piece, True
            elif piece:
                yield piece.replace(_BREAK, "").replace(_ITSELF, MARK), False
