"""Finds the tokens that would complete a word that an answer must not contain."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Seq


class BadWords:
    """Words of several tokens; those of a single token are excluded by their bias."""

    def __init__(self, sequences: Seq[Seq[int]]) -> None:
        """Takes the tokens of the words, two or more of each."""
        # By the token before the last one; many words may begin the same.
        self._by_previous: defaultdict[int, defaultdict[tuple[int, ...], list[int]]]
        self._by_previous = defaultdict(lambda: defaultdict(list))
        for *beginning, last in sequences:
            self._by_previous[beginning[-1]][tuple(beginning)].append(last)

    def completing(self, token_ids: Seq[int], start: int) -> tuple[int, ...]:
        """The tokens that would complete a word as the next one.

        Args:
            token_ids: The tokens so far.
            start: Where the answer begins among them: a word begins there or later.
        """
        num_tokens = len(token_ids) - start
        if num_tokens <= 0 or not (found := self._by_previous.get(token_ids[-1])):
            return ()
        longest = max(map(len, found))
        newest = tuple(token_ids[-min(num_tokens, longest) :])
        return tuple(
            last
            for beginning, lasts in found.items()
            if newest[-len(beginning) :] == beginning
            for last in lasts
        )
