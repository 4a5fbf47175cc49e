"""How much of a text to hold back, because what follows may complete a tag."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final


MAX_SPACE: Final = 2**12
"""White space is held back up to so many characters: a longer one touches nothing, and would be read at each token."""


class Tags:
    """Texts to find in a text that comes in pieces, in steps that hardly depend on their number and length.

    Args:
        tags: The texts, not empty ones.
    """

    def __init__(self, tags: Iterable[str]) -> None:
        # Those that begin with a text follow it at once in this order, so that one look into it is enough.
        self._sorted = sorted(set(tags))
        self._first = frozenset(tag[0] for tag in self._sorted)
        self._longest = max(map(len, self._sorted), default=0)
        # One that begins with another one is never complete before that.
        self._shortest: list[str] = []
        for tag in self._sorted:
            if not self._shortest or not tag.startswith(self._shortest[-1]):
                self._shortest.append(tag)

    def possible_beginning(self, text: str) -> int:
        """Length of the longest suffix of a text that is the beginning of a tag, but not all of it."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first:
                suffix = text[start:]
                place = bisect_right(self._sorted, suffix)
                if place < len(self._sorted) and self._sorted[place].startswith(suffix):
                    return len(suffix)
        return 0

    def first_complete(self, text: str) -> tuple[int, int] | None:
        """Where the tag that is complete first begins and ends, of several that end together the longest."""
        found: tuple[int, int] | None = None
        for start, character in enumerate(text):
            if found and start >= found[1]:
                break
            if character in self._first:
                part = text[start : start + self._longest]
                place = bisect_right(self._shortest, part)
                if place and part.startswith(tag := self._shortest[place - 1]):
                    end = start + len(tag)
                    found = (start, end) if found is None or end < found[1] else found
        return found


def first_tag(text: str, tags: Sequence[str]) -> tuple[int, str] | None:
    """Index of the first tag in a text, and that tag; None if there is none."""
    found = [(index, tag) for tag in tags if (index := text.find(tag)) >= 0]
    return min(found, default=None)
