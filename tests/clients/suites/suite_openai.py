"""The newest `openai`: chat, its helpers, tools, responses, decisions, completions, models and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import json
from typing import Any, Literal

import openai
from pydantic import BaseModel
import pytest


GREEDY: dict[str, Any] = {"model": "qwen-vl", "temperature": 0}
QUESTION = "What is in this picture?"


class Seen(BaseModel):
    """What `.parse()` returns."""

    colour: Literal["red", "green", "blue"]
    shape: Literal["circle", "square", "star"]


class GetWeather(BaseModel):
    """Tells the weather."""

    city: Literal["Paris", "Rome"]
    days: Literal[1, 2]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def asked(data_uri: str) -> list[Any]:
    """A conversation of chat completions."""
    image = {"type": "image_url", "image_url": {"url": data_uri, "detail": "auto"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


@pytest.fixture
def items(data_uri: str) -> list[Any]:
    """The same for responses."""
    image = {"type": "input_image", "image_url": data_uri, "detail": "auto"}
    return [{"role": "user", "content": [image, {"type": "input_text", "text": QUESTION}]}]


def test_chat_and_its_stream(client: openai.OpenAI, asked: list[Any]) -> None:
    whole = client.chat.completions.create(messages=asked, max_tokens=32, **GREEDY)
    text = whole.choices[0].message.content
    assert text is not None
    assert "red circle" in text.lower()
    with client.chat.completions.stream(messages=asked, max_tokens=32, **GREEDY) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.content == text
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].finish_reason == "stop"


def test_log_probabilities_of_several_choices(client: openai.OpenAI, asked: list[Any]) -> None:
    options: dict[str, Any] = {"model": "qwen-vl", "n": 2, "seed": 3, "max_tokens": 6}
    answer = client.chat.completions.create(
        messages=asked, logprobs=True, top_logprobs=2, **options
    )
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert [len(token.top_logprobs) for token in choice.logprobs.content or ()]
    stream = client.chat.completions.create(
        messages=asked,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
        **options,
    )
    chunks = list(stream)
    assert chunks[-1].usage is not None
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}


def test_chat_is_parsed(client: openai.OpenAI, asked: list[Any]) -> None:
    answer = client.chat.completions.parse(
        messages=asked, response_format=Seen, max_tokens=60, **GREEDY
    )
    assert isinstance(answer.choices[0].message.parsed, Seen)
    with client.chat.completions.stream(
        messages=asked, response_format=Seen, max_tokens=60, **GREEDY
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "GetWeather"}}]
)
def test_chat_calls_tools(client: openai.OpenAI, choice: Any) -> None:
    messages: list[Any] = [{"role": "user", "content": "The weather in Rome?"}]
    options: dict[str, Any] = {
        "tools": [openai.pydantic_function_tool(GetWeather)],
        "tool_choice": choice,
        "max_tokens": 120,
        **GREEDY,
    }
    answer = client.chat.completions.parse(messages=messages, **options)
    message = answer.choices[0].message
    [call] = message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, GetWeather)
    with client.chat.completions.stream(messages=messages, **options) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    [streamed] = final.choices[0].message.tool_calls or ()
    assert streamed.function.arguments == call.function.arguments
    assert "tool_calls.function.arguments.done" in {event.type for event in events}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    history = [*messages, message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(
        messages=history, **(options | {"tool_choice": "none", "max_tokens": 8})
    )
    assert after.choices[0].message.tool_calls is None


def test_responses_and_their_stream(client: openai.OpenAI, items: list[Any]) -> None:
    options: dict[str, Any] = {"input": items, "max_output_tokens": 32, **GREEDY}
    answer = client.responses.create(**options)
    assert answer.status == "completed"
    assert "red circle" in answer.output_text.lower()
    with client.responses.stream(**options) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == answer.output_text
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    counted = client.responses.input_tokens.count(model="qwen-vl", input=items)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens


def test_responses_are_parsed_and_call_tools(client: openai.OpenAI, items: list[Any]) -> None:
    parsed = client.responses.parse(input=items, text_format=Seen, max_output_tokens=60, **GREEDY)
    assert isinstance(parsed.output_parsed, Seen)
    tool: Any = openai.pydantic_function_tool(GetWeather)
    flat = {"type": "function", **tool["function"]}
    options: dict[str, Any] = {"tools": [flat], "tool_choice": "required", **GREEDY}
    answer = client.responses.create(input="Rome?", max_output_tokens=120, **options)
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "GetWeather"
    with client.responses.stream(input="Rome?", max_output_tokens=120, **options) as stream:
        kinds = {event.type for event in stream}
    assert "response.function_call_arguments.done" in kinds
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    history: Any = [{"role": "user", "content": "Rome?"}, call.to_dict(), output]
    after = client.responses.create(input=history, max_output_tokens=16, **GREEDY)
    assert after.status in ("completed", "incomplete")


def test_responses_are_stored_and_continued(client: openai.OpenAI, items: list[Any]) -> None:
    first = client.responses.create(input=items, max_output_tokens=32, **GREEDY)
    second = client.responses.create(
        input="What colour is it?",
        previous_response_id=first.id,
        max_output_tokens=32,
        **GREEDY,
    )
    assert "red" in second.output_text.lower()
    assert client.responses.retrieve(second.id).output_text == second.output_text
    listed = list(client.responses.input_items.list(second.id))
    assert len(listed) >= 1
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_decisions(client: openai.OpenAI, data_uri: str) -> None:
    image = {"type": "input_image", "image_url": data_uri}
    questions: list[Any] = [
        {"type": "predicate", "name": "circle", "instructions": "There is a red circle."},
        {
            "type": "choice",
            "instructions": "What color is the circle?",
            "choices": [{"value": "red"}, {"value": "blue"}, {"value": "green"}],
        },
        {
            "type": "score",
            "instructions": "How many shapes are there?",
            "levels": [{"label": "one"}, {"label": "two"}],
        },
    ]
    answer = client.decisions.create(
        model="qwen-vl", input=[{"role": "user", "content": [image]}], questions=questions
    )
    predicate, choice, score = answer.answers
    assert predicate.type == "predicate"
    assert predicate.probability > 0.5
    assert choice.type == "choice"
    assert choice.choice == "red"
    assert score.type == "score"
    assert 0 <= score.score <= 1


def test_text_completions_and_models(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="A red", max_tokens=4, logprobs=1, **GREEDY)
    pieces = client.completions.create(prompt="A red", max_tokens=4, stream=True, **GREEDY)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text
    names = [model.id for model in client.models.list()]
    assert "qwen-vl" in names
    assert client.models.retrieve(names[0]).id == names[0]


def test_errors_have_their_class_and_field(client: openai.OpenAI) -> None:
    message: Any = {"role": "user", "content": "x"}
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-17", messages=[message])
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="qwen-vl", messages=[message], temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.responses.create(model="qwen-vl", input="x", top_p=7)
    assert wrong.value.param == "top_p"


def test_the_asynchronous_client(url: str, asked: list[Any], items: list[Any]) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            chat, response = await asyncio.gather(
                client.chat.completions.create(messages=asked, max_tokens=32, **GREEDY),
                client.responses.create(input=items, max_output_tokens=32, **GREEDY),
            )
        return chat.choices[0].message.content, response.output_text

    chat, response = asyncio.run(ask())
    assert chat == response


def test_raw_bodies_are_json(client: openai.OpenAI, asked: list[Any]) -> None:
    raw = client.chat.completions.with_raw_response.create(messages=asked, max_tokens=4, **GREEDY)
    assert json.loads(raw.text)["object"] == "chat.completion"
    assert raw.headers["x-request-id"]
