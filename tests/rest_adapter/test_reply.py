"""Long answers are converted beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter.reply import json_reply


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
