"""The outputs that wait for a slow consumer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from inference_service.engine_client.backlog import PIECE
from inference_service.engine_client.inflight import RequestInFlight, cut_greediest
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason, PositionLogprobs
from inference_service.errors import DeadlineError
from inference_service.line import Line
from tests.engine_client.engine_front import fake_client, request_of


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
    found: dict[int, list[int]] = {0: [], 1: []}
    pieces = 0
    while len(found[0]) + len(found[1]) < 2 * 5000:
        merged = await slow.next()
        assert len(merged.token_ids) <= PIECE
        found[merged.choice_index] += merged.token_ids
        pieces += 1
    assert found == {0: list(range(5000)), 1: list(range(5000))}
    assert pieces <= 2 * (5000 // PIECE + 2)


async def test_one_who_takes_a_backlog_leaves_the_loop_to_others() -> None:
    slow = flight(1)
    for token in range(20 * PIECE):
        slow.push(output(0, token))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    for _ in range(20):
        await slow.next()
    other.cancel()
    assert turns >= 19


def waiting(caller: str, name: str, positions: int) -> RequestInFlight:
    """A request of which log probabilities wait."""
    request = replace(request_of(name), caller=caller)
    one = RequestInFlight(request, 0, Line(1).ask("", 0))
    entry = PositionLogprobs(token_id=1, logprob=-1.0, rank=1, top=((1, -1.0),) * 20)
    entries = (entry,) * positions
    one.push(ChoiceOutput(request_id=name, choice_index=0, prompt_logprobs=entries))
    return one


async def test_too_much_that_waits_ends_the_greediest_request() -> None:
    honest = waiting("honest", "h", 3000)
    greedy = [waiting("greedy", f"g{number}", 2000 + 300 * number) for number in range(4)]
    flights = [*greedy, honest]
    total = sum(each.buffered_bytes for each in flights)
    assert cut_greediest(flights, total) is None
    # The last one is not larger than the honest one, but there are four of them.
    assert cut_greediest(flights, total - 1) is greedy[3]
    assert greedy[3].buffered_bytes == 0
    with pytest.raises(DeadlineError, match=f"of at most {total - 1}"):
        await greedy[3].next()
    # It still computes; what comes is not kept.
    greedy[3].push(output(0, 5))
    assert greedy[3].buffered_bytes == 0
    assert not greedy[3].over.is_set()
    greedy[3].push(ChoiceOutput.aborted("g3", 0))
    assert greedy[3].over.is_set()
    assert (await honest.next()).prompt_logprobs


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


async def test_the_engine_is_told_of_a_request_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    client = fake_client(backlog_bytes=2**20)
    monkeypatch.setattr(client._supervisor, "send", sent.append)
    flights = {name: waiting(name, name, 3000) for name in ("a", "b")}
    client._requests = dict(flights)
    client._read = set(flights.values())
    entry = PositionLogprobs(token_id=1, logprob=-1.0, rank=1, top=((1, -1.0),) * 20)
    more = ChoiceOutput(request_id="b", choice_index=0, prompt_logprobs=(entry,) * 3000)
    client._on_output(more)
    assert sent == [wire.Abort("b")]
    assert client._requests == flights  # until the engine confirms
    with pytest.raises(DeadlineError):
        await flights["b"].next()
    client._requests.clear()


async def test_what_waits_of_an_answer_that_has_ended_counts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[wire.Command] = []
    client = fake_client(backlog_bytes=2**20)
    monkeypatch.setattr(client._supervisor, "send", sent.append)
    entry = PositionLogprobs(token_id=1, logprob=-1.0, rank=1, top=((1, -1.0),) * 20)
    for number in range(6):
        name = f"r{number}"
        flight = waiting("greedy", name, 1)
        client._requests[name] = flight
        client._read.add(flight)
        whole = ChoiceOutput(
            request_id=name,
            choice_index=0,
            prompt_logprobs=(entry,) * 6000,
            finish_reason=FinishReason.LENGTH,
        )
        monkeypatch.setattr(
            client, "_forget", lambda flight, **_: client._requests.pop(flight.request.request_id)
        )
        client._on_output(whole)
    assert not client._requests
    assert sum(flight.buffered_bytes for flight in client._read) <= 2**20
    assert sent == [], "the engine has computed all of them"
