"""Long answers are converted beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter import reply
from rest_adapter.errors import ApiError, of_reason
from rest_adapter.openai.completions.prompts import create_all
from rest_adapter.paced import PacedResponse
from rest_adapter.reply import FREE_BYTES, AnswerMemory, CollectedAnswers, json_reply


class Body:
    """Notes what a request takes."""

    max_bytes = 2**22
    largest_answer_bytes = 2**40

    def __init__(self, refusals: int = 0) -> None:
        self.taken: list[int] = []
        self.refusals = refusals
        self.pace_of_answer = None

    def take_for_answer(self, count: int) -> None:
        if self.refusals:
            self.refusals -= 1
            raise of_reason("QUEUE_FULL", "no room", retry_after_s=1)
        self.taken.append(count)

    def release(self) -> None:
        self.taken.append(0)


class Request:
    """A client that stays."""

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}


def answer(length: int) -> chat_pb.CreateChatCompletionResponse:
    choice = generation_pb.Choice(text="x" * length)
    return chat_pb.CreateChatCompletionResponse(choices=[choice])


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("length", "beside"), [(100, False), (100_000, True)])
async def test_long_answers_leave_the_event_loop(many: bool, length: int, beside: bool) -> None:
    threads: list[int] = []

    async def work() -> Any:
        return [answer(length), answer(1)] if many else answer(length)

    def document_of(_: object) -> object:
        threads.append(threading.get_ident())
        return {}

    request: Any = Request()
    response = await json_reply(request, work(), document_of, lambda _: None)
    assert response.body == b"{}"
    assert (threads != [threading.get_ident()]) == beside


@pytest.mark.parametrize("length", [FREE_BYTES - 100, FREE_BYTES + 1])
async def test_a_large_answer_counts_in_place_of_the_body(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = Body()
    monkeypatch.setattr(reply, "body_of", lambda _: body)
    request: Any = Request()

    async def work() -> Any:
        return answer(length)

    def document_of(found: Any) -> object:
        return found.choices[0].text

    response = await json_reply(request, work(), document_of, lambda _: None)
    is_large = length > FREE_BYTES
    assert isinstance(response, PacedResponse) == is_large
    assert bool(body.taken) == is_large
    if is_large:
        first, for_objects, again, for_text = body.taken
        assert (first, again, for_text) == (0, 0, length + 2)
        assert for_objects >= 4 * length


@pytest.mark.parametrize("refusals", [3, 1000])
async def test_a_large_answer_waits_for_room_but_not_for_ever(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = Body(refusals)
    monkeypatch.setattr(reply, "body_of", lambda _: body)
    monkeypatch.setattr(reply, "_ROOM_TIMEOUT_S", 0.5)
    request: Any = Request()

    async def work() -> Any:
        return answer(FREE_BYTES + 1)

    pending = json_reply(request, work(), lambda found: found.choices[0].text, lambda _: None)
    if refusals == 3:
        assert len((await pending).body) == FREE_BYTES + 3
    else:
        with pytest.raises(ApiError, match="no room"):
            await pending


def test_the_memory_of_a_stream_is_taken_in_steps() -> None:
    body = Body()
    memory = AnswerMemory(body.take_for_answer)
    for num_bytes in range(0, 4 * FREE_BYTES, 1000):
        memory.hold(num_bytes)
        assert sum(body.taken) >= num_bytes or num_bytes <= FREE_BYTES
    assert 3 < len(body.taken) < 20


async def test_collected_answers_count_when_they_come() -> None:
    body = Body()
    collected = CollectedAnswers(cast(Any, body))
    for count in range(1, 9):
        await collected.hold(answer(100_000))
        assert sum(body.taken) >= 4 * 100_000 * count or 100_000 * count <= FREE_BYTES
    assert sum(body.taken) == 4 * collected.num_bytes
    assert 0 not in body.taken  # the body is still needed


class Completions:
    """Completes all prompts but the last ones, whose answers do not come."""

    def __init__(self, answers: int) -> None:
        self.left = answers
        self.cancelled = 0

    async def create_completion(self, *_: Any, **__: Any) -> Any:
        if self.left:
            self.left -= 1
            text = "x" * FREE_BYTES
            return completion_pb.CreateCompletionResponse(choices=[generation_pb.Choice(text=text)])
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@pytest.mark.parametrize("is_full", [False, True])
async def test_prompts_without_room_for_their_answers_are_cancelled(
    is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service bounds the answer to each prompt only: the adapter would hold 64 of them."""
    monkeypatch.setattr(reply, "_ROOM_TIMEOUT_S", 0.0)
    service, specs = Completions(answers=5), [completion_pb.CompletionSpec()] * 64
    body: Any = Body()
    if is_full:
        body.take_for_answer = Body(refusals=1000).take_for_answer
    else:
        service.left = 64
    work = create_all(cast(Any, service), specs, (), 0, CollectedAnswers(body))
    if not is_full:
        assert len(await work) == 64
        return
    with pytest.raises(ApiError, match="no room"):
        await work
    assert service.cancelled == 64 - 5


async def test_answers_for_which_there_is_never_room_are_not_to_be_repeated() -> None:
    body = Body()
    body.largest_answer_bytes = 3 * 4 * FREE_BYTES
    collected = CollectedAnswers(cast(Any, body))
    for _ in range(2):
        await collected.hold(answer(FREE_BYTES))
    with pytest.raises(ApiError, match="fewer prompts") as refused:
        await collected.hold(answer(2 * FREE_BYTES))
    assert (refused.value.status, refused.value.retry_after_s) == (413, None)


async def test_few_answers_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is not counted, so that others do not wait beside very much of it."""
    monkeypatch.setattr(reply, "_ROOM_TIMEOUT_S", 3600.0)
    collected = CollectedAnswers(cast(Any, Body(refusals=10**6)))
    waiting = [asyncio.create_task(collected.hold(answer(FREE_BYTES))) for _ in range(5)]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
    refused = [task for task in waiting if task.done()]
    assert refused == waiting[-1:]  # each counts 4 * FREE_BYTES, of which a body has 4
    for task in waiting[:-1]:
        task.cancel()
