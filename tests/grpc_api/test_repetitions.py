"""Counts of repetitions in patterns: the same as by plain expressions, in work that grows as the pattern does."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.grpc_api.repetitions import repeats
from tests.support.line_counts import lines_of


LITERALS = re.compile(r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
REPEAT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


def plainly(pattern: str) -> list[str]:
    matches = REPEAT.finditer(LITERALS.sub(" ", pattern))
    return [count for match in matches for count in match.groups() if count]


PIECES = ["\\", "[", "]", "^", "{", "}", "p", "1", "2", ",", " ", "\n", "a", "\\p{", "{2}", "[^]"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_the_counts_are_those_of_plain_expressions(pattern: str) -> None:
    assert list(repeats(pattern)) == plainly(pattern)


@pytest.mark.parametrize(
    ("begin", "part", "end"),
    [
        *(("", "[", ""), ("", "{", ""), ("", "\\p{", ""), ("", "{1", ""), ("", "[\\]", "")),
        *(("{", " ", ","), ("{", "1 ", ""), ("", "[^", "]"), ("", "\\", ""), ("\\x{", "[", "")),
    ],
)
def test_work_grows_as_the_pattern_does(begin: str, part: str, end: str) -> None:
    def lines(number: int) -> int:
        return lines_of(lambda: list(repeats(begin + part * number + end)))

    once, twice = lines(500), lines(1000)
    assert twice <= 2.2 * once + 50


def test_a_long_pattern_has_its_counts() -> None:
    assert list(repeats("{" + " " * 30_000 + "7," + " " * 30_000 + "}")) == ["7"]
    assert list(repeats("[" * 30_000 + "a{8}")) == ["8"]
