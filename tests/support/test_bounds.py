"""The bound on right answers lets chance pass and catches a model that guesses."""

from __future__ import annotations

from random import Random

import pytest

from demo_training.examination import SHARES
from demo_training.naming import LANGUAGES
from tests.support.bounds import (
    FALSE_ALARM,
    assert_mostly_right,
    at_most,
    card_rates,
    fewest_right,
)


# Questions, their rate, and how often a guess is right: one of 8 colours,
# of 4 shapes or sides, of 5 numbers, a word, one of 32 descriptions.
USES = [
    (56, 0.95, 1 / 8),
    (56, 0.95, 1 / 4),
    (32, 0.95, 1 / 5),
    (24, 0.9, 1 / 100),
    (20, 0.95, 1 / 32),
]


def passes(hits: list[bool], rate: float) -> bool:
    try:
        assert_mostly_right(hits, rate)
    except AssertionError:
        return False
    return True


def test_the_probability_of_at_most_so_many() -> None:
    assert at_most(0, 2, 0.5) == 0.25
    assert at_most(1, 2, 0.5) == 0.75
    assert at_most(2, 2, 0.5) == 1.0


@pytest.mark.parametrize(("asked", "rate", "_guess"), USES)
def test_a_model_with_that_rate_fails_once_in_ten_thousand_times(
    asked: int, rate: float, _guess: float
) -> None:
    fewest = fewest_right(asked, rate)

    assert at_most(fewest - 1, asked, rate) < FALSE_ALARM <= at_most(fewest, asked, rate)


@pytest.mark.parametrize(("asked", "rate", "guess"), USES)
def test_a_model_that_guesses_fails(asked: int, rate: float, guess: float) -> None:
    random = Random(0)
    tries = [[random.random() < guess for _ in range(asked)] for _ in range(200)]

    assert not any(passes(hits, rate) for hits in tries)
    assert passes([True] * asked, rate)


def test_shares_of_right_answers_are_added_up() -> None:
    assert_mostly_right([0.5] * 40, 0.7)
    with pytest.raises(AssertionError, match="16 of 40 right"):
        assert_mostly_right([0.4] * 40, 0.7)


def test_so_few_questions_that_nothing_could_fail_are_refused() -> None:
    with pytest.raises(ValueError, match="5 questions"):
        fewest_right(5, 0.8)


def test_the_card_tells_the_rate_of_every_task() -> None:
    assert card_rates().keys() == {(task, language) for task in SHARES for language in LANGUAGES}
    assert all(0.4 < rate < 1 for rate in card_rates().values())
