"""Stop strings: holds back text that may be the start of one."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.domain import StopTrigger
from inference_service.text.output.stage import Piece


class StopStringFilter:
    """Passes on text until a stop string is complete, which ends the answer.

    The stop string that is completed first applies, and the longest of several that end together: the result does not
    depend on how the text is split into pieces.
    """

    may_end = True

    def __init__(self, strings: Sequence[str], *, include: bool) -> None:
        """Takes the stop strings.

        Args:
            strings: The stop strings, not empty ones; may be no strings.
            include: Keep the stop string in the text.

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
        """Passes on text that cannot be part of a stop string; a complete stop string ends the answer."""
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
        """Length of the longest suffix of the text that is a prefix of a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if self._strings and any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
