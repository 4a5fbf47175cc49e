"""Counts the steps that a regular expression takes on a text, as a backtracking matcher such as `re` makes them.

A count depends on nothing but the expression and the text, unlike a time. `growing` returns a text on which the count
grows faster than the text does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import re
from re import _constants as ops
from re import _parser
import sys
from typing import Any, Final


FEW_STEPS: Final = 8
"""Steps for each character that no text needs to be looked at for growth."""
PUMPS: Final = 20
MAX_RATIO: Final = 2.7
"""By which more steps come with each doubling of a text: 2 if they grow as it does, 4 if by its square."""
MAX_STEPS: Final = 200_000
WIDE: Final = 32
"""A repetition of at least so many is taken for an endless one: its length matters as that of a text does."""
NO_MATCH: Final = "\0"
_MAX_SAMPLE: Final = 24
_MAX_PUMP: Final = 8

_Then = Callable[[int], bool]
_Node = Callable[[int, _Then], bool]


class _TooManyError(Exception):
    pass


class Counter:
    """Counts the steps of one expression.

    Args:
        pattern: The expression; back references are not supported.
    """

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        self._ignores_case = bool(pattern.flags & re.IGNORECASE)
        self._dot_all = bool(pattern.flags & re.DOTALL)
        self.tree = _parser.parse(pattern.pattern, pattern.flags)
        self._run = self._sequence(self.tree)
        self._text = ""
        self._steps = 0

    def steps(self, text: str, method: str) -> int:
        """The steps of `match`, `fullmatch`, or of a search for all matches; at most about `MAX_STEPS`."""
        self._text, self._steps = text, 0
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(100_000)
        try:
            if method == "fullmatch":
                self._run(0, lambda end: end == len(text))
            elif method == "match":
                self._run(0, lambda _: True)
            else:
                self._find_all()
        except _TooManyError:
            pass
        finally:
            sys.setrecursionlimit(limit)
        return self._steps

    def _find_all(self) -> None:
        start = 0
        while start <= len(self._text):
            end = self._end(self._run, start)
            start = start + 1 if end is None else max(end, start + 1)

    @staticmethod
    def _end(node: _Node, start: int) -> int | None:
        """Where the first match of a node that begins at a place ends."""
        found: list[int] = []

        def note(end: int) -> bool:
            found.append(end)
            return True

        return found[0] if node(start, note) else None

    def _count(self) -> None:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise _TooManyError

    def _sequence(self, items: Sequence[tuple[Any, Any]]) -> _Node:
        nodes = [self._node(op, value) for op, value in items]

        def run(position: int, then: _Then, index: int = 0) -> bool:
            if index == len(nodes):
                return then(position)
            return nodes[index](position, lambda end: run(end, then, index + 1))

        return nodes[0] if len(nodes) == 1 else run

    def _node(self, op: Any, value: Any) -> _Node:  # noqa: PLR0911 - one line for each kind
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
            return self._repeat(op, *value)
        if op is ops.BRANCH:
            choices = [self._sequence(choice) for choice in value[1]]
            return lambda position, then: any(choice(position, then) for choice in choices)
        if op is ops.SUBPATTERN:
            return self._sequence(value[3])
        if op is ops.ATOMIC_GROUP:
            return self._atomic(self._sequence(value))
        if op in (ops.ASSERT, ops.ASSERT_NOT):
            return self._assertion(value, wanted=op is ops.ASSERT)
        if op is ops.AT:
            return lambda position, then: self._is_at(value, position) and then(position)
        if op is ops.FAILURE:
            return lambda *_: False
        fits = self._character(op, value)

        def one(position: int, then: _Then) -> bool:
            self._count()
            text = self._text
            return position < len(text) and fits(text[position]) and then(position + 1)

        return one

    def _atomic(self, node: _Node) -> _Node:
        def run(position: int, then: _Then) -> bool:
            end = self._end(node, position)
            return end is not None and then(end)

        return run

    def _assertion(self, value: Any, *, wanted: bool) -> _Node:
        direction, items = value
        node, width = self._sequence(items), items.getwidth()[0] if direction < 0 else 0

        def run(position: int, then: _Then) -> bool:
            start = position - width
            holds = start >= 0 and node(start, lambda end: direction > 0 or end == position)
            return holds == wanted and then(position)

        return run

    def _repeat(self, op: Any, least: int, most: Any, items: Any) -> _Node:
        node = self._sequence(items)
        most = sys.maxsize if most is ops.MAXREPEAT or most >= WIDE else int(most)

        def again(position: int, then: _Then, number: int = 0) -> bool:
            self._count()

            def more() -> bool:
                return number < most and node(position, next_one)

            def next_one(end: int) -> bool:
                return (end > position or number < least) and again(end, then, number + 1)

            if number < least:
                return more()
            if op is ops.MIN_REPEAT:
                return then(position) or more()
            return more() or then(position)

        return self._atomic(again) if op is ops.POSSESSIVE_REPEAT else again

    def _is_at(self, place: Any, position: int) -> bool:
        text = self._text
        if place in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING):
            return position == 0
        if place is ops.AT_END_STRING:
            return position == len(text)
        if place is ops.AT_END:
            return text[position:] in ("", "\n")
        before, behind = (
            0 <= index < len(text) and _is_word(text[index]) for index in (position - 1, position)
        )
        return (before != behind) == (place is ops.AT_BOUNDARY)

    def _character(self, op: Any, value: Any) -> Callable[[str], bool]:
        if op is ops.ANY:
            return lambda character: self._dot_all or character != "\n"
        if op is ops.IN:
            wanted = value[0][0] is not ops.NEGATE
            tests = [self._character(*item) for item in value if item[0] is not ops.NEGATE]
            return lambda character: any(test(character) for test in tests) == wanted
        if op is ops.CATEGORY:
            return _CATEGORIES[value]
        low, high = value if op is ops.RANGE else (value, value)
        variants = str.swapcase if self._ignores_case else str
        is_in = lambda one: len(one) == 1 and low <= ord(one) <= high  # noqa: E731
        return lambda character: (
            (is_in(character) or is_in(variants(character))) == (op is not ops.NOT_LITERAL)
        )

    def samples(self) -> Iterator[str]:
        """Some short texts that match, or nearly so: with few and with more repetitions, and of each alternative."""
        texts = {
            self._sample(self.tree, repeats, choice)[:_MAX_SAMPLE]
            for repeats in (1, 2, 0)
            for choice in range(6)
        }
        yield from sorted(filter(None, texts), key=lambda text: (len(text), text))

    def _sample(self, items: Any, repeats: int, choice: int) -> str:
        parts: list[str] = []
        for op, value in items:
            if op in (ops.MAX_REPEAT, ops.MIN_REPEAT, ops.POSSESSIVE_REPEAT):
                least, most, inner = value
                number = max(min(least, 3), min(repeats, most))
                parts.append(self._sample(inner, repeats, choice) * number)
            elif op is ops.BRANCH:
                choices = value[1]
                parts.append(self._sample(choices[choice % len(choices)], repeats, choice))
            elif op in (ops.SUBPATTERN, ops.ATOMIC_GROUP):
                inner = value[3] if op is ops.SUBPATTERN else value
                parts.append(self._sample(inner, repeats, choice))
            elif op is ops.ASSERT and value[0] > 0:
                parts.append(self._sample(value[1], repeats, choice))
            elif op not in (ops.ASSERT, ops.ASSERT_NOT, ops.AT, ops.FAILURE):
                fitting = [one for one in _ALPHABET if self._character(op, value)(one)]
                own = chr(value) if op is ops.LITERAL else ""
                parts.append(own or (fitting[choice % len(fitting)] if fitting else NO_MATCH))
        return "".join(parts)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


_CATEGORIES: Final[dict[Any, Callable[[str], bool]]] = {
    ops.CATEGORY_DIGIT: str.isdecimal,
    ops.CATEGORY_NOT_DIGIT: lambda one: not one.isdecimal(),
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_NOT_SPACE: lambda one: not one.isspace(),
    ops.CATEGORY_WORD: _is_word,
    ops.CATEGORY_NOT_WORD: lambda one: not _is_word(one),
}
_ALPHABET: Final = "a0 \n,.<>/-\xff\u4e00[]{}:;\"'\x01"


def growing(pattern: re.Pattern[Any], method: str, most: int | None = None) -> str | None:
    """A text on which the steps grow faster than its length, as a short description; None = none was found.

    Args:
        pattern: The expression.
        method: The method of `re.Pattern` that is called; others than `match` and `fullmatch` search.
        most: Texts to try, half of them those that repeat least, half evenly chosen; None = all.
    """
    counter = Counter(pattern)
    tried = sorted(dict.fromkeys(_pumped(counter)), key=_rank)
    if most is not None and most < len(tried):
        tried = tried[: most // 2] + tried[most // 2 :: 2 * len(tried) // most]
    for prefix, pump, suffix in tried:
        texts = [prefix + pump * (PUMPS * size) + suffix for size in (4, 2, 1)]
        longest = counter.steps(texts[0], method)
        if longest <= FEW_STEPS * len(texts[0]):
            continue
        half, quarter = (counter.steps(text, method) for text in texts[1:])
        if longest > MAX_STEPS or longest - half > MAX_RATIO * (half - quarter):
            return f"{prefix!r} + {pump!r} * n + {suffix!r}: {quarter}, {half}, {longest} steps"
    return None


def _rank(parts: tuple[str, str, str]) -> tuple[int, bool, int]:
    prefix, pump, suffix = parts
    return len(pump), suffix != NO_MATCH, len(prefix)


def _pumped(counter: Counter) -> Iterator[tuple[str, str, str]]:
    """Beginnings, parts to repeat, and ends: each part of each sample in its place, and alone."""
    for sample in counter.samples():
        for start in range(len(sample)):
            for end in range(start + 1, min(start + _MAX_PUMP, len(sample)) + 1):
                pump = sample[start:end]
                for suffix in (NO_MATCH, sample[end:] + NO_MATCH, "", sample[end:]):
                    yield sample[:start], pump, suffix
                yield "", pump, NO_MATCH
