"""Stop strings in a stream of text.

Owns the text that is held back because a stop string may have begun.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Passes text on until a stop string is complete.

    The stop string that is complete first counts, and of several that end together the longest: the result does not
    depend on how the text was cut into pushes.
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
        self._matched = False

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes a piece of text.

        Returns:
            (text to pass on, the stop string found or None); after one was found everything is swallowed.
        """
        if self._matched:
            return "", None
        text = self._held + text
        found = [
            (start + len(string), start, string)
            for string in self._strings
            if (start := text.find(string)) >= 0
        ]
        if found:
            self._matched, self._held = True, ""
            end, start, string = min(found)
            return text[: end if self._include else start], string
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """The text still held back: no stop string can follow any more."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if self._strings and any(s.startswith(text[-length:]) for s in self._strings):
                return length
        return 0
