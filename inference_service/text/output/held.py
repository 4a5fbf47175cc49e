"""How much of a text to hold back, because what follows may complete a tag."""

from __future__ import annotations

from collections.abc import Sequence


def possible_beginning(text: str, tags: Sequence[str]) -> int:
    """Length of the longest suffix of a text that is the beginning of a tag, but not all of it."""
    longest = max(map(len, tags), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        suffix = text[-length:]
        if any(len(tag) > length and tag.startswith(suffix) for tag in tags):
            return length
    return 0


def first_tag(text: str, tags: Sequence[str]) -> tuple[int, str] | None:
    """Index of the first tag in a text, and that tag; None if there is none."""
    found = [(index, tag) for tag in tags if (index := text.find(tag)) >= 0]
    return min(found, default=None)
