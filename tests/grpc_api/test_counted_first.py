"""Lists of a request are counted before anything else is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from inference_service.domain import ChatMessage, Role, TextPart
from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api import request_messages, request_options, request_tools, requests
from inference_service.settings import ServiceSettings
from inference_service.text import tool_text
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb


class Untouchable:
    """Many numbers that nobody may look at."""

    def __len__(self) -> int:
        return 2**25

    def __iter__(self) -> Iterator[Any]:
        pytest.fail("it was copied")


def test_stop_tokens_and_texts() -> None:
    with pytest.raises(InvalidArgumentError, match="33554432 entries"):
        request_options._stop_tokens(Untouchable())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="33554432 entries"):
        request_options._strings(Untouchable(), "spec.x", maximum=1, max_bytes=1)  # type: ignore[arg-type]


def test_a_prompt() -> None:
    spec: Any = SimpleNamespace(
        WhichOneof=lambda _: "token_ids", token_ids=SimpleNamespace(ids=Untouchable())
    )
    with pytest.raises(InvalidArgumentError, match="token_ids has 33554432 entries"):
        requests.text_completion_request(spec, "m", "r", ServiceSettings())


def test_allowed_tokens() -> None:
    spec = completion_pb.CompletionSpec(text="a")
    spec.sampling.allowed_token_ids.extend([1] * (2**18 + 1))
    with pytest.raises(InvalidArgumentError, match="allowed_token_ids has 262145 entries"):
        requests.text_completion_request(spec, "m", "r", ServiceSettings())


@pytest.mark.parametrize("arguments", ['{"a": [' + "[]," * 2**18 + "1]}", "[" * 2**19, "," * 2**19])
def test_arguments_of_calls(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_tools, "_parsed", lambda _: pytest.fail("it was parsed"))
    call = message_pb.ToolCall(name="f", arguments_json=arguments)
    message = message_pb.Message(role=message_pb.ROLE_ASSISTANT, tool_calls=[call])
    with pytest.raises(InvalidArgumentError, match="brackets and commas, but at most 262144"):
        request_messages.chat_messages([message])


def test_results_in_a_row_are_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of a run were copied for each result, so that thousands took minutes."""
    made: list[ChatMessage] = []

    def make(**fields: Any) -> ChatMessage:
        made.append(ChatMessage(**fields))
        return made[-1]

    monkeypatch.setattr(tool_text, "ChatMessage", make)
    results = [ChatMessage(role=Role.TOOL, parts=(TextPart(text="x"),))] * 500
    [(joined, index)] = tool_text.with_tools_as_text(results, ())
    assert (index, made) == (0, [joined])
    text = "".join(part.text for part in joined.parts if isinstance(part, TextPart))
    assert text == "\n".join(["<tool_response>\nx\n</tool_response>"] * 500)
