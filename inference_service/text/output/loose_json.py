"""Finds JSON in the text of a model: among prose, in markdown fences, with quotes of Python, broken or cut off.

A JSON decoder reads a text up to where it is invalid, and a reader of our own the rest: the error of the decoder takes
time proportional to its position. The latter accepts all that the former does, and reads each character once or twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
import json
import re
import sys


# Followed by what an object or an array may begin with: most braces and brackets of prose are skipped.
_OPENING = re.compile(r"""\{(?=\s*+["'A-Za-z_])|\[(?=\s*+[\[{"'\d-])""")
_TOKEN = re.compile(
    r"""[\s,]*+(?:
        (?P<mark>[{}\[\]:])
      | (?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+" | '[^'\\]*+(?:\\.[^'\\]*+)*+')
      | (?P<number>-?\d++(?:\.\d++)?(?:[eE][+-]?\d++)?)
      | (?P<word>[A-Za-z_]\w*+)
    )""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_CUT_OFF = re.compile(r"[\s,]*+(?:\Z|[\"'])", re.ASCII)  # a quote that opens no whole string
_LITERALS = frozenset({"true", "false", "null", "True", "False", "None", "NaN", "Infinity"})


class LooseArray(list[object]):
    """An array that our reader has read.

    Attributes:
        is_open: The text breaks or ends in it; its last number may lack digits.
    """

    is_open = True


def is_whole(array: list[object]) -> bool:
    """Whether an array was read to its end."""
    return not (isinstance(array, LooseArray) and array.is_open)


@dataclass(slots=True)
class JsonObject:
    """An object.

    Attributes:
        pairs: Its keys and values in order; a key may be repeated.
        end: Index behind it in the text, or behind what could be read of it; a huge number if it was not asked for.
        key: While it is read: the key that waits for its value.
        has_colon: While it is read: the colon behind that key was read.
    """

    pairs: list[tuple[str, object]] = field(default_factory=list)
    end: int = sys.maxsize
    key: str | None = None
    has_colon: bool = False


_DECODER = json.JSONDecoder(
    strict=False, object_pairs_hook=JsonObject, parse_int=float, parse_constant=lambda _: None
)


def find_json(text: str, *, with_ends: bool = False) -> Iterator[list[object] | JsonObject]:
    """The arrays and objects of a text that are in no other, in order.

    Strings are `str`, numbers `float`, arrays `list` and objects `JsonObject`. What is broken ends where it breaks, its
    complete values are kept, and what follows is read as if nothing had come before.

    Args:
        text: The text.
        with_ends: Set `JsonObject.end`; slower.
    """
    position, is_valid = 0, not with_ends
    while opening := _OPENING.search(text, position):
        root: list[object] | JsonObject | None = None
        if is_valid:
            try:
                root, position = _DECODER.raw_decode(text, opening.start())
            except (ValueError, RecursionError):
                is_valid = False
        if root is None:
            reader = _Reader(text, opening.start())
            root, position = reader.root, reader.position
        yield root


class _Reader:
    """Reads one root.

    Attributes:
        root: It.
        position: Where the search for the next one begins.
    """

    def __init__(self, text: str, start: int) -> None:
        self.root: list[object] | JsonObject = JsonObject() if text[start] == "{" else LooseArray()
        self.position = start + 1
        self._open: list[list[object] | JsonObject] = [self.root]
        while self._open:
            match = _TOKEN.match(text, self.position)
            if match is None or not self._take(match):
                break
            self.position = match.end()
        end = len(text) if _CUT_OFF.match(text, self.position) else self.position
        for container in self._open:
            if isinstance(container, JsonObject):
                container.end = end

    def _take(self, match: re.Match[str]) -> bool:
        """Takes a token; false = the root is broken here."""
        kind, top = match.lastgroup, self._open[-1]
        token = match[kind or 0]
        if kind == "mark":
            return self._take_mark(token, match.end())
        if kind != "number" and isinstance(top, JsonObject) and top.key is None:
            top.key = _unquoted(token) if kind == "string" else token
            return True
        if kind == "word":
            return token in _LITERALS and self._put(None)
        return self._put(float(token) if kind == "number" else _unquoted(token))

    def _take_mark(self, mark: str, end: int) -> bool:
        top = self._open[-1]
        if mark == ":":
            waits = isinstance(top, JsonObject) and top.key is not None and not top.has_colon
            if isinstance(top, JsonObject):
                top.has_colon = waits
            return waits
        if mark in "}]":
            return self._close(JsonObject if mark == "}" else LooseArray, end)
        inner = JsonObject() if mark == "{" else LooseArray()
        if not self._put(inner):
            return False
        self._open.append(inner)
        return True

    def _put(self, value: object) -> bool:
        """Puts a value into the innermost container, if one may stand there."""
        top = self._open[-1]
        if isinstance(top, list):
            top.append(value)
            return True
        if top.key is None or not top.has_colon:
            return False
        top.pairs.append((top.key, value))
        top.key, top.has_colon = None, False
        return True

    def _close(self, kind: type[LooseArray | JsonObject], end: int) -> bool:
        """Closes the innermost container of a kind, if it is the last or the last but one, whose end was forgotten."""
        for depth, container in enumerate(reversed(self._open[-2:]), start=1):
            if isinstance(container, kind):
                for closed in self._open[-depth:]:
                    if isinstance(closed, JsonObject):
                        closed.end = end
                    elif isinstance(closed, LooseArray):
                        closed.is_open = False
                del self._open[-depth:]
                return True
        return False


def _unquoted(token: str) -> str:
    """The text of a string with its quotes."""
    if token[0] == '"':
        try:
            return str(json.loads(token, strict=False))
        except ValueError:  # an escape that JSON does not have
            return token[1:-1]
    return token[1:-1].replace("\\'", "'")
