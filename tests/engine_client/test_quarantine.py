"""How long a request is suspected, and which requests count as answered."""

from __future__ import annotations

import asyncio

import pytest

from inference_service.engine_client.inflight import RequestInFlight
from inference_service.engine_client.quarantine import Quarantine
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason
from tests.engine_client.engine_front import request_of


def test_suspicion_ends_with_time() -> None:
    now = [0.0]
    quarantine = Quarantine(lambda: now[0])
    request = request_of("a")
    for now[0] in (0.0, Quarantine.FORGIVEN_AFTER_S - 1):
        assert not quarantine.holds(request)
        quarantine.blame([request])
    assert quarantine.holds(request)
    now[0] += Quarantine.FORGIVEN_AFTER_S
    assert not quarantine.holds(request)
    quarantine.blame([request])
    assert not quarantine.holds(request)
    quarantine.blame([request])
    assert quarantine.holds(request)


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
    reservation: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    flight = RequestInFlight(request_of("a", num_choices=2), 0, reservation)
    for output in before:
        flight.push(output)
    flight.abandoned = True
    for output in after:
        flight.push(output)
    assert flight.over.is_set()
    assert flight.unanswered_choices == unanswered
