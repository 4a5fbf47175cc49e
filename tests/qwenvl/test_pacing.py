"""How refusals are slowed down."""

from __future__ import annotations

from heapq import heapify, heapreplace

from qwenvl.pacing import RefusalPacing


def test_only_a_caller_that_repeats_refused_requests_at_once_waits() -> None:
    now = [0.0]
    pacing = RefusalPacing(lambda: now[0])
    for _ in range(60):  # one a second, as `Retry-After` asks
        assert pacing.delay_s("polite") == 0
        now[0] += 1
    delays = [pacing.delay_s("hammers") for _ in range(200)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == 10.0
    assert pacing.delay_s("polite") < 0.2
    now[0] += 60
    assert pacing.delay_s("hammers") == 0


def test_a_flood_is_forgotten_soon() -> None:
    now = [0.0]
    pacing = RefusalPacing(lambda: now[0])
    for number in range(100_000):
        pacing.delay_s(f"{number % 50}")
        now[0] += 0.0001
    assert pacing.delay_s("0") == 10.0
    assert pacing.is_over("0")
    now[0] += 11.0
    assert pacing.delay_s("0") == 0.0
    assert not pacing.is_over("0")


def refusals_per_s(callers: int, admitted_per_s: int = 0) -> float:
    """How many callers that ask again at once are refused, while others are admitted."""
    now = [0.0]
    pacing = RefusalPacing(lambda: now[0])
    asking = [(0.0, f"{number}") for number in range(callers)]  # when each asks next
    heapify(asking)
    refusals, admitted = 0, 0
    while now[0] < 80:
        now[0], caller = asking[0]
        while admitted < now[0] * admitted_per_s:
            pacing.admitted()
            admitted += 1
        refusals += now[0] >= 20
        heapreplace(asking, (now[0] + pacing.delay_s(caller) + 0.001, caller))
    return refusals / 60


def test_many_callers_are_refused_few_times_a_second_together() -> None:
    assert 5 < refusals_per_s(80) < 15
    assert refusals_per_s(2000) < 1.05 * 2000 / 10, "each waits for at most ten seconds"


def test_the_more_are_admitted_the_more_may_be_refused() -> None:
    assert 50 < refusals_per_s(80, admitted_per_s=120) < 100


def test_however_fast_they_ask_a_hundred_are_refused_some_times_a_second() -> None:
    now = [0.0]
    pacing = RefusalPacing(lambda: now[0])
    asking = [0.0] * 100  # when each asks next
    heapify(asking)
    refusals = 0
    while now[0] < 80:
        now[0] = asking[0]
        refusals += now[0] >= 20
        heapreplace(asking, now[0] + pacing.delay_s("hammers") + 0.001)
    assert 5 < refusals / 60 < 25
