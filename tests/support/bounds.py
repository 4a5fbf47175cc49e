"""How many right answers a test of the demo model must see.

The rule: a test fails only if the number of right answers is below the lower quantile (`FALSE_ALARM`) of a binomial
distribution with the rate that the model's card tells, or with the required minimum rate. Another processor rounds
differently and other questions are a new sample: both move the number a little, a bare share would call that a defect.
For judgements between 0 and 1 (overlaps of boxes) the bound holds as well: they vary less than a coin of the same mean.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from math import comb
from pathlib import Path
import re


FALSE_ALARM = 1e-4
CARD = Path(__file__).parents[2] / "inference_service" / "demo" / "README.md"
_ROW = re.compile(r"^\| (\S+) \| (\d+) \| ([\d.]+) % \| ([\d.]+) % \|$", re.MULTILINE)


def at_most(right: int, asked: int, rate: float) -> float:
    """Probability of at most `right` right answers, each of which is right with probability `rate`."""
    return sum(comb(asked, k) * rate**k * (1 - rate) ** (asked - k) for k in range(right + 1))


def fewest_right(asked: int, rate: float) -> int:
    """The lower quantile: fewer right answers have a probability below FALSE_ALARM.

    Raises:
        ValueError: So few are asked that even no right answer would be no surprise: the test could not fail.
    """
    fewest = next(k for k in range(asked + 1) if at_most(k, asked, rate) >= FALSE_ALARM)
    if fewest == 0:
        raise ValueError(f"{asked} questions cannot show that a rate of {rate} is missed; ask more")
    return fewest


@cache
def card_rates() -> dict[tuple[str, str], float]:
    """(task, language) -> share of right answers that the card tells.

    By the rule of succession, (right + 1) / (asked + 2): no measurement shows that a model is never wrong.
    """
    rates = {}
    for task, both, english, chinese in _ROW.findall(CARD.read_text(encoding="utf-8")):
        asked = int(both) / 2
        for language, percent in (("en", english), ("zh", chinese)):
            rates[task, language] = (asked * float(percent) / 100 + 1) / (asked + 2)
    return rates


def assert_mostly_right(hits: Collection[float], rate: float) -> None:
    """Fails if fewer answers are right than `fewest_right` allows.

    Args:
        hits: For each question 1 or true for a right answer, 0 or false for a wrong one, or anything between.
        rate: The share that is right on average.
    """
    fewest = fewest_right(len(hits), rate)
    right = sum(hits)
    assert right >= fewest, f"{right:g} of {len(hits)} right; a rate of {rate:.3f} gives {fewest}"
