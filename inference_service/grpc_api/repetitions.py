"""Finds the counts of repetitions, `{m,n}`, in regular expressions, in time that grows as their length does."""

from __future__ import annotations

from collections.abc import Iterator
import re
from typing import Final


# Possessive (`*+`): what is no repetition is not tried with fewer spaces or digits again.
_REPEAT: Final = re.compile(r"\{\s*+(\d*+)\s*+(?:,\s*+(\d*+)\s*+)?+\}")
_LITERAL: Final = re.compile(r"[\\\[]")
_WITH_BRACES: Final = "pPxuU"
"""Escapes that may have braces: `\\p{Greek}`, `\\x{10FFFF}`."""


def repeats(pattern: str) -> Iterator[str]:
    """The counts of repetitions in a pattern; what is escaped, or in a class of characters, is none."""
    for match in _REPEAT.finditer(_without_literals(pattern)):
        yield from (count for count in match.groups() if count)


def _without_literals(pattern: str) -> str:
    """The pattern with a space in place of each escape and each class of characters."""
    ends = _ends_of_classes(pattern) if "[" in pattern else []
    last_brace = pattern.rfind("}")
    parts: list[str] = []
    index = 0
    while found := _LITERAL.search(pattern, index):
        start = found.start()
        parts.append(pattern[index:start])
        if found[0] == "[":
            end = _end_of_class(pattern, start, ends)
        elif start + 1 == len(pattern):
            end = 0
        elif (
            pattern[start + 1] in _WITH_BRACES
            and pattern.startswith("{", start + 2)
            and start < last_brace
        ):
            end = pattern.index("}", start) + 1
        else:
            end = start + 2
        parts.append(" " if end else found[0])
        index = end or start + 1
    return "".join((*parts, pattern[index:]))


def _end_of_class(pattern: str, start: int, ends: list[int]) -> int:
    """The index behind the class of characters that begins at an index; 0 = none does, as it has no end."""
    inside = start + 1 + pattern.startswith("^", start + 1)
    if pattern.startswith("]", inside):  # the first of its characters, if it has an end behind it
        return ends[inside + 1] or inside + 1
    return ends[inside]


def _ends_of_classes(pattern: str) -> list[int]:
    """For each index the one behind the next `]` that is not escaped, if the text from there is in a class; 0 = none.

    From the end to the beginning, so that each index is looked at once, however many brackets are never closed.
    """
    ends = [0] * (len(pattern) + 2)
    for index in range(len(pattern) - 1, -1, -1):
        if pattern[index] == "]":
            ends[index] = index + 1
        else:
            ends[index] = ends[index + 1 + (pattern[index] == "\\")]
    return ends
