"""NFC: the library's, of a text whose marks it need not sort."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal
import unicodedata

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.text import nfc


MARKS = "\u0301\u0327\u0344\u0323\u05b0\u0f71\u0f72\u0f73\u0f81\u3099"
OTHERS = "a \u00e9\u1ebf\u4e00\uac01\u1100\u1161\u304b"
PIECES = st.one_of(
    st.text(MARKS + OTHERS, max_size=8),
    st.text(MARKS, min_size=31, max_size=60),
    st.characters(codec="utf-8"),
)


@given(st.lists(PIECES, max_size=4).map("".join))
def test_the_same_as_the_library(text: str) -> None:
    assert nfc.to_nfc(text) == unicodedata.normalize("NFC", text)


def moves(text: str) -> int:
    """By how many places the marks of a text move when each is sorted among those before it."""
    count, before = 0, [0] * 256
    for character in text:
        mark = unicodedata.combining(character)
        if mark:
            count += sum(before[mark + 1 :])
            before[mark] += 1
        else:
            before = [0] * 256
    return count


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301\u0327" * 2000,
        "a" + "\u0301" * 2000 + "\u0327" * 2000,
        "\u1ebf" + "\u0327" * 4000,
        "a" + "\u0344\u0327" * 2000,
        ("a" + "\u0301\u0327" * 15) * 130,
        ("\u4e00" * 20 + "\u0301" * 15 + "\u0327" * 15) * 80,
    ],
    ids=range(6),
)
def test_long_runs_of_marks_come_sorted(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = unicodedata.normalize("NFC", text)
    taken: list[str] = []

    def normalize(form: Literal["NFC", "NFD"], part: str) -> str:
        taken.append(part)
        return unicodedata.normalize(form, part)

    monkeypatch.setattr(nfc, "unicodedata", SimpleNamespace(normalize=normalize))
    assert nfc.to_nfc(text) == expected
    assert sum(map(moves, taken)) < 20 * len(text)
