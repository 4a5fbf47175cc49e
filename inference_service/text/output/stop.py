"""Stop strings: holds back text that may be the start of one."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.domain import StopTrigger
from inference_service.text.output.held import Tags
from inference_service.text.output.stage import Piece


class StopStringFilter:
    """Passes on text until a stop string is complete, which ends the answer.

    The stop string that is completed first applies, and the longest of several that end together: the result does not
    depend on how the text is split into pieces.
    """

    may_end = True
    counts_tokens = False

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
        self._strings = Tags(strings)
        self._include = include
        self._held = ""
        self._marks: tuple[int, ...] = ()

    def push(self, piece: Piece) -> None:
        """Passes on text that cannot be part of a stop string; a complete stop string ends the answer."""
        text = self._held + piece.text
        marks = (*self._marks, *(len(self._held) + index for index in piece.marks))
        found = self._strings.first_complete(text)
        if found:
            start, end = found
            self._pass(piece, text, marks, end if self._include else start)
            piece.trigger = StopTrigger(stop_string=text[start:end])
            piece.last = piece.is_cut = True
            return
        kept = 0 if piece.last else self._strings.possible_beginning(text)
        self._pass(piece, text, marks, len(text) - kept)

    def _pass(self, piece: Piece, text: str, marks: tuple[int, ...], end: int) -> None:
        """Passes the text up to an index on, and holds back the rest."""
        piece.text, self._held = text[:end], text[end:]
        piece.marks = tuple(index for index in marks if index < end)
        self._marks = tuple(index - end for index in marks if index >= end)
