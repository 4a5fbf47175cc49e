"""Calls that are required, from OpenAI's client to the demo model and back: a model that was never taught to call."""

from __future__ import annotations

from collections.abc import Iterator
import json
from typing import Any

import anthropic
import openai
from openai.types.chat import ChatCompletionToolParam
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.e2e.conftest import Served
from tests.support.images import draw


pytestmark = pytest.mark.both_backends
SEEN: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "report",
        "parameters": {
            "type": "object",
            "properties": {
                "colour": {"enum": ["red", "green", "blue"]},
                "sides": {"enum": [0, 3, 4]},
            },
            "required": ["colour", "sides"],
            "additionalProperties": False,
        },
    },
}
NOW: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "now",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}
NAMED: Any = {"type": "function", "function": {"name": "report"}}


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages() -> list[Any]:
    url = {"type": "image_url", "image_url": {"url": draw("red", "circle").data_uri}}
    return [{"role": "user", "content": [url, {"type": "text", "text": "What is this?"}]}]


def check(arguments: str) -> None:
    seen = json.loads(arguments)
    assert set(seen) == {"colour", "sides"}
    assert seen["colour"] in ("red", "green", "blue")
    assert seen["sides"] in (0, 3, 4)


def test_a_named_call_complete_and_streamed(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "qwen-vl", "messages": messages(), "tools": [SEEN, NOW]}
    fields |= {"tool_choice": NAMED, "max_tokens": 400, "temperature": 0}
    answer = client.chat.completions.create(**fields)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "report"
    check(call.function.arguments)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (None, "stop")
    with client.chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion()
    [streamed] = final.choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments


def test_calls_of_any_function_are_required(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="qwen-vl",
        messages=messages(),
        tools=[SEEN, NOW],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
    )
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert answer.choices[0].finish_reason == "tool_calls"
    check(call.function.arguments) if call.function.name == "report" else None
    assert call.function.name in ("report", "now")


def test_the_same_over_the_api_of_anthropic(served: Served) -> None:
    tool: Any = {"name": "report", "input_schema": SEEN["function"]["parameters"]}
    asked: list[Any] = [{"role": "user", "content": "What is this?"}]
    fields: dict[str, Any] = {"model": "qwen-vl", "max_tokens": 400, "tools": [tool]}
    fields |= {"messages": asked, "tool_choice": {"type": "tool", "name": "report"}}
    with anthropic.Anthropic(base_url=served.http, api_key="none", max_retries=0) as client:
        answer = client.messages.create(**fields)
        [call] = answer.content
        assert call.type == "tool_use"
        assert answer.stop_reason == "tool_use"
        check(json.dumps(call.input))
        asked.append({"role": "assistant", "content": [call.model_dump()]})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "Thanks."}
        asked.append({"role": "user", "content": [result]})
        fields["tool_choice"] = {"type": "none"}
        again = client.messages.create(**fields | {"max_tokens": 8})
        assert [block.type for block in again.content] == ["text"]


def test_the_same_over_grpc(chat: chat_grpc.ChatServiceStub) -> None:
    tool = message_pb.Tool(
        name="report", parameters_json_schema=json.dumps(SEEN["function"]["parameters"])
    )
    image = message_pb.Part(image=message_pb.Image(data=draw("red", "circle").png))
    spec = chat_pb.ChatCompletionSpec(
        messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=[image])],
        tools=[tool],
        tool_choice=message_pb.ToolChoice(function_name="report"),
    )
    request = chat_pb.CreateChatCompletionRequest(spec=spec)
    [choice] = chat.CreateChatCompletion(request, timeout=120).choices
    check(choice.tool_calls[0].arguments_json)
