"""Sampling settings as people type them."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.cli import build_parser
from inference_service.commands.sampling_words import NAMES, read_sampling
from inference_service.sampling import RANGES


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0", 0.0),
        ("temperature", " 1.5 ", 1.5),
        ("max_tokens", "7", 7),
        ("seed", "-1", -1),
        ("ignore_eos", "On", True),
        ("ignore_eos", "false", False),
    ],
)
def test_values(name: str, text: str, value: Any) -> None:
    assert read_sampling(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temperature", "nan", "a number from 0 to 2"),
        ("temperature", "inf", "a number from 0 to 2"),
        ("temperature", "2.1", "a number from 0 to 2"),
        ("temperature", "warm", "a number from 0 to 2"),
        ("repetition_penalty", "0", "a number from 0.001 to 10"),
        ("max_tokens", "0", "an integer from 1 to 2147483647"),
        ("max_tokens", "1e3", "an integer from 1 to 2147483647"),
        ("seed", "9223372036854775808", "an integer from"),
        ("ignore_eos", "maybe", "true or false"),
    ],
)
def test_what_cannot_be_a_value(name: str, text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} cannot be {text}: it is {expected}"):
        read_sampling(name, text)


@given(name=st.sampled_from(NAMES), text=st.text(max_size=8) | st.floats().map(str))
def test_any_text_is_a_value_in_range_or_refused(name: str, text: str) -> None:
    with contextlib.suppress(ValueError):
        value = read_sampling(name, text)
        assert name not in RANGES or value in RANGES[name]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--temperature", "nan"), "temperature cannot be nan: it is a number from 0 to 2"),
        (("--temperature=-1"), "temperature cannot be -1"),
        (("--max-tokens", "0"), "max_tokens cannot be 0: it is an integer from 1"),
    ],
)
def test_flags(
    arguments: tuple[str, ...] | str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [arguments] if isinstance(arguments, str) else [*arguments]
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["chat", *words, "question"])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
