"""How long a request is suspected, and which requests count as answered."""

from __future__ import annotations

import pytest

from inference_service.engine_client.inflight import RequestInFlight
from inference_service.engine_client.quarantine import Quarantine, Verdict
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason
from inference_service.line import Line
from tests.engine_client.engine_front import request_of


def test_suspicion_ends_with_time() -> None:
    now = [0.0]
    quarantine = Quarantine(lambda: now[0])
    request = request_of("a")
    for now[0] in (0.0, Quarantine.FORGIVEN_AFTER_S - 1):
        assert quarantine.admit(request) is Verdict.ADMITTED
        quarantine.blame([request])
    assert quarantine.admit(request) is Verdict.REFUSED
    now[0] += Quarantine.FORGIVEN_AFTER_S
    assert quarantine.admit(request) is Verdict.ADMITTED
    quarantine.blame([request])
    assert quarantine.admit(request) is Verdict.ADMITTED
    quarantine.blame([request])
    assert quarantine.admit(request) is Verdict.REFUSED


def test_bystanders_of_two_failures_are_answered_again() -> None:
    """A prompt that many send is in flight at every failure."""
    quarantine = Quarantine()
    common, poison = request_of("common", 1), request_of("poison", 2)
    for _ in range(2):
        quarantine.blame([common, poison])
    assert quarantine.admit(common) is Verdict.ADMITTED
    assert quarantine.admit(poison) is Verdict.WAITS
    assert quarantine.admit(common) is Verdict.WAITS
    quarantine.leave(common, answered=True)
    for _ in range(2):
        assert quarantine.admit(common) is Verdict.ADMITTED
        assert quarantine.admit(poison) is Verdict.ADMITTED
        quarantine.blame([common, poison])
    assert quarantine.admit(poison) is Verdict.REFUSED
    assert quarantine.admit(common) is Verdict.ADMITTED


def test_a_suspect_that_leaves_without_an_answer_stays_suspected() -> None:
    quarantine = Quarantine()
    requests = [request_of(name, index) for index, name in enumerate("ab")]
    for _ in range(2):
        quarantine.blame(requests)
    assert quarantine.admit(requests[0]) is Verdict.ADMITTED
    quarantine.leave(requests[0], answered=False)
    assert quarantine.admit(requests[1]) is Verdict.ADMITTED
    assert quarantine.admit(requests[0]) is Verdict.WAITS


def token(choice_index: int) -> ChoiceOutput:
    return ChoiceOutput(request_id="a", choice_index=choice_index, token_ids=(7,))


def end(choice_index: int, reason: FinishReason) -> ChoiceOutput:
    return ChoiceOutput(request_id="a", choice_index=choice_index, finish_reason=reason)


def aborted(choice_index: int) -> ChoiceOutput:
    return ChoiceOutput.aborted("a", choice_index)


@pytest.mark.parametrize(
    ("before", "after", "unanswered"),
    [
        ([token(0), token(1), aborted(0), aborted(1)], [], set()),
        ([token(0), token(1)], [aborted(0), aborted(1)], set()),
        ([token(0), end(1, FinishReason.EOS)], [aborted(0)], set()),
        ([end(0, FinishReason.LENGTH), end(1, FinishReason.ERROR)], [], set()),
        ([token(0)], [aborted(0), aborted(1)], {1}),
        ([token(0)], [token(1), aborted(0), aborted(1)], {1}),
        ([], [aborted(0), aborted(1)], {0, 1}),
    ],
)
async def test_a_choice_is_answered_by_a_token_or_by_its_own_end(
    before: list[ChoiceOutput], after: list[ChoiceOutput], unanswered: set[int]
) -> None:
    """`before` and `after` its consumer leaves."""
    flight = RequestInFlight(request_of("a", num_choices=2), 0, Line(1).ask("", 0))
    for output in before:
        flight.push(output)
    flight.abandoned = True
    for output in after:
        flight.push(output)
    assert flight.over.is_set()
    assert flight.unanswered_choices == unanswered
