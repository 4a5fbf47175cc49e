"""How refusals are slowed down."""

from __future__ import annotations

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
    assert delays[-1] == 2.0
    assert pacing.delay_s("polite") == 0
    now[0] += 60
    assert pacing.delay_s("hammers") == 0
