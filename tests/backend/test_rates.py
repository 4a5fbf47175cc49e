"""What one caller may use in a minute."""

from __future__ import annotations

import pytest

from inference_service.backend.rates import Amounts, RateLimits
from inference_service.errors import RateLimitError


def test_requests_of_a_minute_are_counted_for_each_caller() -> None:
    now = [0.0]
    rates = RateLimits({"requests": 3, "tokens": None}, lambda: now[0])
    for _ in range(3):
        rates.check("a")
        rates.take("a", Amounts(requests=1))
    with pytest.raises(RateLimitError, match="--max-requests-per-minute") as caught:
        rates.check("a")
    assert caught.value.retry_after_s == pytest.approx(20)
    assert caught.value.metadata == {"limit": "3", "kind": "requests"}
    rates.check("b")
    now[0] += 20.001
    rates.check("a")


@pytest.mark.parametrize("kind", ["tokens", "image_bytes"])
def test_what_is_known_afterwards_is_paid_back(kind: str) -> None:
    now = [0.0]
    rates = RateLimits({kind: 600}, lambda: now[0])
    rates.check("a")
    rates.take("a", Amounts(**{kind: 1200.0}))
    with pytest.raises(
        RateLimitError, match=f"--max-{kind.replace('_', '-')}-per-minute"
    ) as caught:
        rates.check("a")
    assert caught.value.retry_after_s == pytest.approx(60)
    now[0] += 61
    rates.check("a")


def test_without_limits_nothing_is_kept() -> None:
    rates = RateLimits({"requests": None})
    rates.take("a", Amounts(requests=1e9))
    rates.check("a")
    assert not rates._used
