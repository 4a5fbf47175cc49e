"""Long answers are converted beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter import reply
from rest_adapter.paced import PacedResponse
from rest_adapter.reply import FREE_BYTES, AnswerMemory, json_reply


class Body:
    """Notes what a request takes."""

    max_bytes = 2**22

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.pace = None

    def take(self, count: int) -> None:
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


def test_the_memory_of_a_stream_is_taken_in_steps() -> None:
    body = Body()
    memory = AnswerMemory(body.take)
    for num_bytes in range(0, 4 * FREE_BYTES, 1000):
        memory.hold(num_bytes)
        assert sum(body.taken) >= num_bytes or num_bytes <= FREE_BYTES
    assert 3 < len(body.taken) < 20
