"""Stop strings: text in which one may have begun is held back until it is certain."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.domain import StopTrigger
from inference_service.text.output.stage import Piece


class StopStringFilter:
    """Passes text on until a stop string is complete, which ends the answer.

    The stop string that is complete first counts, and of several that end together the longest: the result does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, strings: Sequence[str], *, include: bool) -> None:
        """Takes the stop strings.

        Args:
            strings: None of them empty; there may be none.
            include: Pass on the stop string as well.

        Raises:
            ValueError: One is empty.
        """
        if not all(strings):
            raise ValueError("a stop string is empty")
        self._strings = tuple(strings)
        self._longest = max(map(len, strings), default=0)
        self._include = include
        self._held = ""

    def push(self, piece: Piece) -> None:
        """Passes on the text that no stop string can begin in; a complete one makes the piece the last."""
        text = self._held + piece.text
        found = [
            (start + len(string), start, string)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if found:
            end, start, string = min(found)
            piece.text = text[: end if self._include else start]
            piece.trigger = StopTrigger(stop_string=string)
            piece.last = True
            return
        kept = 0 if piece.last else self._possible_beginning(text)
        piece.text = text[: len(text) - kept]
        self._held = text[len(text) - kept :]

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if self._strings and any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
