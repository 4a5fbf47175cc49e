"""The outputs that wait for a slow consumer."""

from __future__ import annotations

from inference_service.engine_client.inflight import RequestInFlight
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason
from inference_service.line import Line
from tests.engine_client.engine_front import request_of


def flight(num_choices: int) -> RequestInFlight:
    return RequestInFlight(request_of("a", num_choices=num_choices), 0, Line(1).ask("", 0))


def output(choice: int, token: int, reason: FinishReason | None = None) -> ChoiceOutput:
    return ChoiceOutput(
        request_id="a", choice_index=choice, token_ids=(token,), finish_reason=reason
    )


async def test_outputs_that_wait_are_merged_and_nothing_is_lost() -> None:
    slow = flight(2)
    for token in range(5000):
        for choice in range(2):
            slow.push(output(choice, token))
        assert sum(map(len, slow._buffered.values())) <= 2 * 64
    for choice in range(2):
        merged = await slow.next()
        assert merged.choice_index == choice
        assert merged.token_ids == tuple(range(5000))


async def test_the_choice_that_waits_longest_is_next() -> None:
    busy = flight(3)
    for choice in range(3):
        busy.push(output(choice, choice))
    order = []
    for _ in range(6):
        order.append((await busy.next()).choice_index)
        busy.push(output(order[-1], 9))  # the one just taken has more already
    assert order == [0, 1, 2, 0, 1, 2]


async def test_tokens_are_counted_when_they_come_whether_or_not_they_are_read() -> None:
    counts: list[int] = []
    left = flight(2)
    left.counted = counts.append
    for token in range(200):
        left.push(output(0, token))
    left.abandoned = True
    left.push(output(1, 7, FinishReason.LENGTH))
    left.push(output(1, 8))  # after its end
    left.push_aborted(0)
    assert counts == [1] * 201
