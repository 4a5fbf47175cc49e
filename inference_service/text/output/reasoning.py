"""Separates the reasoning at the beginning of an answer from its text."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from inference_service.text.output.held import MAX_SPACE, Tags, first_tag
from inference_service.text.output.stage import Piece


OPEN_TAG: Final = "<think>"
CLOSE_TAG: Final = "</think>"
_BREAKS_AFTER: Final = 2
"""Newlines that formats write between the tag and the text."""


class ReasoningStart(Enum):
    """What an answer begins with, known from its prompt.

    Attributes:
        TEXT: With text; the model does not reason.
        CLOSED: With text, behind reasoning that the prompt has closed.
        OPEN: With reasoning that the prompt has opened.
        OPTIONAL: With reasoning if its first characters open it.
    """

    TEXT = "text"
    CLOSED = "closed"
    OPEN = "open"
    OPTIONAL = "optional"


class ReasoningSplitter:
    """Moves everything up to the closing tag, or all if there is none, to the reasoning.

    Newlines that touch the tags, and a second closing tag, are left out.
    """

    may_end = False
    counts_tokens = True

    def __init__(
        self, start: ReasoningStart, close_id: int | None, also_ended_by: Sequence[str] = ()
    ) -> None:
        """Starts an answer.

        Args:
            start: What it begins with.
            close_id: The token that is the closing tag, which alone ends the reasoning; None = text ends it.
            also_ended_by: Beginnings of text that end the reasoning without the tag.
        """
        self._state = start
        self._close_id = close_id
        # Texts that end the reasoning wherever they stand.
        self._tags = (*(() if close_id is not None else (CLOSE_TAG,)), *also_ended_by)
        self._beginnings = Tags(self._tags)
        self._held = ""
        self._marks: tuple[int, ...] = ()
        self._at_start = True
        self._tokens = 0
        self._counts = start in (ReasoningStart.OPEN, ReasoningStart.OPTIONAL)

    def push(self, piece: Piece) -> None:
        """Moves the reasoning of a piece; holds back what may be part of a tag, and newlines that may touch one."""
        text = self._held + piece.text
        marks = (*self._marks, *(len(self._held) + index for index in piece.marks))
        self._count(piece.token_ids)
        piece.text, piece.marks = "", ()
        self._held, self._marks = "", ()
        if self._state is ReasoningStart.OPTIONAL:
            text, marks = self._opened(text, marks, last=piece.last)
        if self._state is ReasoningStart.OPEN:
            text = self._reasoned(piece, text, marks)
        if self._state is ReasoningStart.CLOSED:
            text = self._behind_tag(text, last=piece.last)
        if self._state is ReasoningStart.TEXT:
            piece.text = text
        piece.reasoning_tokens = self._tokens if self._state is not ReasoningStart.OPTIONAL else 0

    def _count(self, token_ids: tuple[int, ...]) -> None:
        for token_id in token_ids if self._counts else ():
            self._tokens += 1
            if token_id == self._close_id:
                self._counts = False
                return

    def _opened(
        self, text: str, marks: tuple[int, ...], *, last: bool
    ) -> tuple[str, tuple[int, ...]]:
        """Looks for the opening tag at the first character that is not white space."""
        begun = text.lstrip()
        if begun.startswith(OPEN_TAG):
            cut = len(text) - len(begun) + len(OPEN_TAG)
            self._state = ReasoningStart.OPEN
            return text[cut:], tuple(index - cut for index in marks if index >= cut)
        if OPEN_TAG.startswith(begun) and not last and len(text) <= MAX_SPACE:
            self._held, self._marks = text, marks
            return "", ()
        self._state = ReasoningStart.TEXT
        self._tokens, self._counts = 0, False
        return text, ()

    def _reasoned(self, piece: Piece, text: str, marks: tuple[int, ...]) -> str:
        """Passes reasoning on; returns the text behind it."""
        if self._at_start:
            stripped = text.lstrip("\n")
            marks = tuple(index - len(text) + len(stripped) for index in marks)
            text, self._at_start = stripped, not stripped
        end, behind = self._end_of_reasoning(text, marks)
        if end is not None:
            piece.reasoning += text[:end].rstrip("\n")
            self._state = ReasoningStart.CLOSED if end < behind else ReasoningStart.TEXT
            self._counts = False
            return text[behind:]
        if piece.last:
            piece.reasoning += text
            return ""
        kept = text[: len(text) - self._beginnings.possible_beginning(text)].rstrip("\n")
        kept = text[: max(len(kept), len(text) - MAX_SPACE)]
        piece.reasoning += kept
        self._held = text[len(kept) :]
        self._marks = tuple(index - len(kept) for index in marks if index >= len(kept))
        return ""

    def _end_of_reasoning(self, text: str, marks: tuple[int, ...]) -> tuple[int | None, int]:
        """Where the reasoning ends, None = not in this text, and where the text behind it begins."""
        found = first_tag(text, self._tags)
        if marks and (found is None or marks[0] < found[0]):
            return marks[0], marks[0] + len(CLOSE_TAG)
        if found is None:
            return None, 0
        index, tag = found
        return index, index + len(tag) if tag == CLOSE_TAG else index

    def _behind_tag(self, text: str, *, last: bool) -> str:
        """The text behind the closing tag, once it is known not to begin with a second one."""
        while True:
            begun = text.lstrip("\n")
            if not begun.startswith(CLOSE_TAG):
                break
            text = begun.removeprefix(CLOSE_TAG)
        if CLOSE_TAG.startswith(begun) and not last and len(text) <= MAX_SPACE:
            self._held = text
            return ""
        self._state = ReasoningStart.TEXT
        breaks = min(len(text) - len(begun), _BREAKS_AFTER)
        return text[breaks:]
