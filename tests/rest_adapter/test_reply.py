"""Long answers are converted beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter import reply
from rest_adapter.errors import ApiError, of_reason
from rest_adapter.paced import PacedResponse
from rest_adapter.reply import FREE_BYTES, AnswerMemory, json_reply


class Body:
    """Notes what a request takes."""

    max_bytes = 2**22

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
