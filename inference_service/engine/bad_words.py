"""Finds the tokens that would complete a word that an answer must not contain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq


class BadWords:
    """Words of several tokens; those of a single token are excluded by their bias."""

    def __init__(self, sequences: Seq[Seq[int]]) -> None:
        """Takes the tokens of the words, two or more of each."""
        self._by_previous: defaultdict[int, list[tuple[list[int], int]]] = defaultdict(list)
        for *beginning, last in sequences:
            self._by_previous[beginning[-1]].append((beginning, last))

    def completing(self, token_ids: Seq[int], start: int) -> tuple[int, ...]:
        """The tokens that would complete a word as the next one.

        Args:
            token_ids: The tokens so far.
            start: Where the answer begins among them: a word begins there or later.
        """
        if len(token_ids) <= start:
            return ()
        found = self._by_previous.get(token_ids[-1], ())
        return tuple(
            last
            for beginning, last in found
            if len(token_ids) - len(beginning) >= start
            and token_ids[-len(beginning) :] == beginning
        )
