"""The newest `anthropic`: messages, streams, tools, structured output, counted tokens and errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest


QUESTION = "What is in this picture?"
BASE: dict[str, Any] = {"model": "qwen-vl", "max_tokens": 120, "extra_body": {"temperature": 0}}
TOOL: dict[str, Any] = {
    "name": "get_weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def asked(base64_picture: str) -> list[Any]:
    source = {"type": "base64", "media_type": "image/png", "data": base64_picture}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_messages_stream_and_count(client: anthropic.Anthropic, asked: list[Any]) -> None:
    message = client.messages.create(messages=asked, system="Be short.", **BASE)
    assert "red circle" in text_of(message).lower()
    with client.messages.stream(messages=asked, system="Be short.", **BASE) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == text_of(final) == text_of(message)
    assert final.stop_reason == message.stop_reason == "end_turn"
    counted = client.messages.count_tokens(model="qwen-vl", system="Be short.", messages=asked)
    for usage in (message.usage, final.usage):
        cached = usage.cache_read_input_tokens or 0
        assert counted.input_tokens == usage.input_tokens + cached


def test_every_event_of_a_stream(client: anthropic.Anthropic, asked: list[Any]) -> None:
    events = list(client.messages.create(messages=asked, stream=True, **BASE))
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_tools(client: anthropic.Anthropic, choice: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "The weather in Rome?"}]
    options: Any = {"tools": [TOOL], "tool_choice": choice, **BASE}
    message = client.messages.create(messages=messages, **options)
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert message.stop_reason == "tool_use"
    assert call.input["city"] in ("Paris", "Rome")
    with client.messages.stream(messages=messages, **options) as stream:
        final = stream.get_final_message()
    [streamed] = [block for block in final.content if block.type == "tool_use"]
    assert streamed.input == call.input
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    history = [
        *messages,
        {"role": "assistant", "content": [block.to_dict() for block in message.content]},
        {"role": "user", "content": [result]},
    ]
    after = client.messages.create(messages=history, tools=[TOOL], **BASE)
    assert after.stop_reason in ("end_turn", "max_tokens")


def test_a_tool_result_with_a_picture(client: anthropic.Anthropic, base64_picture: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64_picture}
    call = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
    result: Any = {"type": "tool_result", "tool_use_id": "toolu_1"}
    result["content"] = [{"type": "image", "source": source}]
    history: Any = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result, {"type": "text", "text": QUESTION}]},
    ]
    counted = client.messages.count_tokens(model="qwen-vl", messages=history, tools=[TOOL])
    answer = client.messages.create(messages=history, tools=[TOOL], **BASE)
    assert counted.input_tokens == answer.usage.input_tokens + (
        answer.usage.cache_read_input_tokens or 0
    )


def test_structured_output(client: anthropic.Anthropic, asked: list[Any]) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form: Any = {"format": {"type": "json_schema", "schema": schema}}
    message = client.messages.create(messages=asked, output_config=form, **BASE)
    assert text_of(message).replace(" ", "") in ('{"colour":"red"}', '{"colour":"blue"}')


def test_errors(client: anthropic.Anthropic) -> None:
    message: Any = {"role": "user", "content": "x"}
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(messages=[message], **(BASE | {"model": "claude-9"}))
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(messages=[message], **(BASE | {"max_tokens": -1}))


def test_models(client: anthropic.Anthropic) -> None:
    [model] = [each for each in client.models.list() if each.id == "qwen-vl"]
    assert (model.type, model.lifecycle) == ("model", "active")
    assert model.max_input_tokens
    assert model.capabilities is not None
    assert model.capabilities.image_input.supported
    assert client.models.retrieve("qwen-vl") == model
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-17")


def test_what_is_cached(client: anthropic.Anthropic) -> None:
    """The service keeps every prompt, and tells what is new to those that ask for it by `cache_control`."""
    text = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen."
    block: Any = {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
    asked: list[Any] = [{"role": "user", "content": [block]}]
    counted = client.messages.count_tokens(model="qwen-vl", messages=asked).input_tokens
    first, second = (client.messages.create(messages=asked, **BASE).usage for _ in range(2))
    for usage in (first, second):
        read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
        assert usage.input_tokens + read + written == counted
    assert first.cache_creation_input_tokens
    assert not second.cache_creation_input_tokens
    assert second.cache_read_input_tokens
