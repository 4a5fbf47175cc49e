"""How refusals are slowed down."""

from __future__ import annotations

from heapq import heapify, heapreplace

from inference_service.grpc_api.pacing import RefusalPacing


def test_only_a_caller_that_repeats_refused_requests_at_once_waits() -> None:
    now = [0.0]
    pacing = RefusalPacing(lambda: now[0])
    for _ in range(60):  # one a second, as `Retry-After` asks
        assert pacing.delay_s("polite") == 0
        now[0] += 1
    delays = [pacing.delay_s("hammers") for _ in range(200)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == 5.0
    assert pacing.delay_s("polite") == 0
    now[0] += 60
    assert pacing.delay_s("hammers") == 0


def test_however_fast_they_ask_a_hundred_are_refused_twenty_times_a_second() -> None:
    now = [0.0]
    pacing = RefusalPacing(lambda: now[0])
    asking = [0.0] * 100  # when each asks next
    heapify(asking)
    refusals = 0
    while now[0] < 70:
        now[0] = asking[0]
        refusals += now[0] >= 10
        heapreplace(asking, now[0] + pacing.delay_s("hammers") + 0.001)
    assert 15 < refusals / 60 < 25
