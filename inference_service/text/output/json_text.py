"""Reads JSON character by character as it is generated, and stops where it is not JSON."""

from __future__ import annotations

from collections.abc import Callable
import json
import re
from typing import Final


_SPACE: Final = " \t\r\n"
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_BEGUN_NUMBER: Final = re.compile(
    r"-?(?:(?:0|[1-9]\d*)(?:\.(?:\d+)?)?(?:(?<=\d)[eE][+-]?\d*)?)?", re.ASCII
)
_MAX_DIGITS: Final = 1000
_LITERALS: Final = ("true", "false", "null")
_ESCAPES: Final = frozenset('"\\/bfnrt')
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class JsonReader:
    """Reads one object or array (RFC 8259).

    Control characters in strings, which models write and JSON does not allow, are replaced by their escapes.

    Attributes:
        depth: Number of objects and arrays that are open.
        done: The value is complete.
    """

    def __init__(self) -> None:
        self.done = False
        self._open: list[str] = []
        self._token = ""
        self._is_key = False
        self._take_next: Callable[[str], str | None] = self._begin

    @property
    def depth(self) -> int:
        """Number of objects and arrays that are open."""
        return len(self._open)

    def take(self, character: str) -> str | None:
        """Takes the next character of a value that is not done.

        Returns:
            The JSON for it; None = it cannot follow what was taken before, and was not taken.
        """
        return self._take_next(character)

    def _begin(self, character: str) -> str | None:
        if character in _SPACE:
            return character
        return self._value(character) if character in "{[" else None

    def _value(self, character: str) -> str | None:
        """Where a value must begin."""
        if character in _SPACE:
            return character
        if character in "{[":
            self._open.append(character)
            self._take_next = self._key_or_end if character == "{" else self._value_or_end
        elif character == '"':
            self._is_key, self._take_next = False, self._string
        elif character in "-0123456789":
            self._token, self._take_next = character, self._number
        elif character in "tfn":
            self._token, self._take_next = character, self._literal
        else:
            return None
        return character

    def _value_or_end(self, character: str) -> str | None:
        return self._close() if character == "]" else self._value(character)

    def _key_or_end(self, character: str) -> str | None:
        return self._close() if character == "}" else self._key(character)

    def _key(self, character: str) -> str | None:
        if character == '"':
            self._is_key, self._take_next = True, self._string
            return character
        return character if character in _SPACE else None

    def _colon(self, character: str) -> str | None:
        if character == ":":
            self._take_next = self._value
            return character
        return character if character in _SPACE else None

    def _next(self, character: str) -> str | None:
        """Behind a value in an object or array."""
        if character in _SPACE:
            return character
        in_object = self._open[-1] == "{"
        if character == ",":
            self._take_next = self._key if in_object else self._value
            return character
        return self._close() if character == ("}" if in_object else "]") else None

    def _close(self) -> str:
        self._take_next = self._next
        closed = self._open.pop()
        self.done = not self._open
        return "}" if closed == "{" else "]"

    def _string(self, character: str) -> str | None:
        if character == '"':
            self._take_next = self._colon if self._is_key else self._next
        elif character == "\\":
            self._token, self._take_next = "", self._escape
        elif character < " ":
            return json.dumps(character)[1:-1]
        return character

    def _escape(self, character: str) -> str | None:
        if self._token:
            if character not in _HEX:
                return None
            self._token += character
            if len(self._token) == 5:
                self._take_next = self._string
            return character
        if character == "u":
            self._token = character
        elif character in _ESCAPES:
            self._take_next = self._string
        else:
            return None
        return character

    def _number(self, character: str) -> str | None:
        if _BEGUN_NUMBER.fullmatch(self._token + character):
            if len(self._token) == _MAX_DIGITS:
                return None
            self._token += character
            return character
        return self._next(character) if _NUMBER.fullmatch(self._token) else None

    def _literal(self, character: str) -> str | None:
        self._token += character
        if self._token in _LITERALS:
            self._take_next = self._next
        elif not any(literal.startswith(self._token) for literal in _LITERALS):
            return None
        return character


def to_json(value: object) -> str:
    """The JSON of a value, spaced as models are trained.

    Raises:
        ValueError: A number is not finite.
        RecursionError: It is nested too deeply.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # A half of a surrogate pair, which an escape can produce, has no UTF-8.
    return json.dumps(value) if _SURROGATE.search(text) else text
