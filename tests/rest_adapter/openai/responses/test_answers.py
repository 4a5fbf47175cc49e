"""Responses and their streams, as OpenAI's own client reads them and as two packages of types have them."""

from __future__ import annotations

import json
from typing import Any

import openai
from pydantic import BaseModel
import pytest
import requests

from tests.rest_adapter.conftest import Adapter, read_through_silence
from tests.rest_adapter.fake_outputs import DEFAULTS
from tests.rest_adapter.fake_service import CREATED
from tests.rest_adapter.openai.responses.strict import check_event, check_resource
from tests.rest_adapter.scripted_answers import call as piece_of_call
from tests.rest_adapter.scripted_answers import script


THOUGHT: list[dict[str, Any]] = [
    {"reasoning": "let me "},
    {"reasoning": "see"},
    {"text": "It is "},
    {"text": "red."},
    piece_of_call(0, '{"at":', "call_1", "look"),
    piece_of_call(0, ' "x"}'),
    piece_of_call(1, "{}", "call_2", "stop"),
]
LOOK: Any = {
    "type": "function",
    "name": "look",
    "description": "Looks.",
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
    "strict": True,
}
STOP: Any = {"type": "function", "name": "stop"}


def call(adapter: Adapter, method: str, path: str, **options: Any) -> requests.Response:
    """A request with the key that the clients of these tests have."""
    headers = {"authorization": "Bearer none"}
    url = f"{adapter.url}/v1/responses{path}"
    return requests.request(method, url, headers=headers, timeout=30, **options)


def post(adapter: Adapter, path: str = "", **body: Any) -> requests.Response:
    body = {"model": "demo", "input": "hello"} | body
    return call(adapter, "POST", path, json=body)


def frames_of(text: str) -> list[dict[str, Any]]:
    """The data of all frames, whose `event` lines are checked; without `[DONE]`."""
    frames = []
    for block in text.split("\n\n"):
        if not block or block.startswith(":") or block == "data: [DONE]":
            continue
        name, _, data = block.partition("\ndata: ")
        frame = json.loads(data)
        assert name == f"event: {frame['type']}"
        frames.append(frame)
    return frames


def streamed(adapter: Adapter, **body: Any) -> list[dict[str, Any]]:
    frames = frames_of(post(adapter, stream=True, **body).content.decode())
    assert [frame["sequence_number"] for frame in frames] == list(range(len(frames)))
    for frame in frames:
        check_event(frame)
    assert len({frame["response"]["id"] for frame in frames if "response" in frame}) == 1
    return frames


def without_ids(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "id"}


def test_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="qwen-vl", input="hé!")
    assert answer.output_text == "hé!"
    assert (answer.status, answer.model, answer.created_at) == ("completed", "demo", CREATED)
    assert answer.id.startswith("resp_")
    [message] = answer.output
    assert message.type == "message"
    assert message.id.startswith("msg_")
    assert message.status == "completed"
    assert answer.usage is not None
    assert answer.usage.input_tokens == 10
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.input_tokens_details.cache_write_tokens == 2
    assert answer.usage.total_tokens == 13


def test_every_key_is_there_with_the_settings_in_effect(adapter: Adapter) -> None:
    document = post(adapter, temperature=0.25, metadata={"a": "b"}, instructions="Be brief.").json()
    check_resource(document)
    assert document["temperature"] == 0.25
    assert document["top_p"] == DEFAULTS.top_p
    assert (document["presence_penalty"], document["frequency_penalty"]) == (0, 0)
    assert document["metadata"] == {"a": "b"}
    assert document["instructions"] == "Be brief."
    assert document["store"] is False
    assert document["max_output_tokens"] is None
    assert document["completed_at"] >= document["created_at"]
    null = {name for name, value in document.items() if value is None}
    assert null == {
        "error",
        "incomplete_details",
        "max_output_tokens",
        "max_tool_calls",
        "previous_response_id",
        "prompt_cache_key",
        "safety_identifier",
    }


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": script(*THOUGHT), "tools": [LOOK, STOP]},
        {"input": script(*THOUGHT), "reasoning": {"effort": "high", "summary": "auto"}},
        {"input": script(*THOUGHT), "include": ["reasoning.encrypted_content"]},
        {"input": script({"reasoning": "only"})},
        {"input": script("cut", reason="LENGTH")},
        {"input": script()},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
        {"tools": [LOOK], "tool_choice": {"type": "function", "name": "look"}},
        {"tools": [LOOK, STOP], "tool_choice": "required", "parallel_tool_calls": False},
        {
            "tools": [LOOK, STOP],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "required",
                "tools": [{"type": "function", "name": "stop"}],
            },
        },
        {"text": {"format": {"type": "json_object"}}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}},
        {
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
            "user": "u",
            "max_tool_calls": 3,
            "max_output_tokens": 9,
            "service_tier": "auto",
        },
    ],
)
def test_both_packages_accept_resource_and_events(adapter: Adapter, body: dict[str, Any]) -> None:
    whole = post(adapter, **body).json()
    check_resource(whole)
    frames = streamed(adapter, **body)
    last = frames[-1]["response"]
    check_resource(last)
    assert [without_ids(item) for item in last["output"]] == [
        without_ids(item) for item in whole["output"]
    ]
    same = ("status", "usage", "tools", "tool_choice", "text", "incomplete_details")
    assert [last[name] for name in same] == [whole[name] for name in same]
    done = [frame["item"] for frame in frames if frame["type"] == "response.output_item.done"]
    assert done == last["output"]


def test_order_of_items_and_events(adapter: Adapter) -> None:
    frames = streamed(adapter, input=script(*THOUGHT), tools=[LOOK, STOP])
    kinds = [frame["type"].removeprefix("response.") for frame in frames]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    output = frames[-1]["response"]["output"]
    assert [item["id"].partition("_")[0] for item in output] == ["rs", "msg", "fc", "fc"]
    assert [item.get("call_id") for item in output] == [None, None, "call_1", "call_2"]
    assert output[2]["arguments"] == '{"at": "x"}'


def test_a_summary_is_the_whole_reasoning(adapter: Adapter) -> None:
    frames = streamed(adapter, input=script(*THOUGHT[:3]), reasoning={"summary": "detailed"})
    deltas = [f for f in frames if f["type"] == "response.reasoning_summary_text.delta"]
    assert "".join(frame["delta"] for frame in deltas) == "let me see"
    item = frames[-1]["response"]["output"][0]
    assert item["summary"] == [{"type": "summary_text", "text": "let me see"}]
    assert "content" not in item


def test_what_is_cut_off_is_incomplete(adapter: Adapter) -> None:
    for body in ({"input": "long", "max_output_tokens": 1}, {"input": script(reason="LENGTH")}):
        frames = streamed(adapter, **body)
        assert frames[-1]["type"] == "response.incomplete"
        response = frames[-1]["response"]
        assert response["status"] == "incomplete"
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}
        assert response["output"][-1]["status"] == "incomplete"
        assert response["completed_at"] is None
        assert post(adapter, **body).json()["status"] == "incomplete"


def test_nothing_generated_is_one_empty_text(adapter: Adapter) -> None:
    [item] = post(adapter, input=script()).json()["output"]
    assert item["content"] == [
        {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    ]


def test_no_delta_is_empty(adapter: Adapter) -> None:
    pieces: list[dict[str, Any]] = [
        {"text": ""},
        {"text": "a"},
        {"reasoning": ""},
        {"call": 0, "name": "look"},
    ]
    frames = streamed(adapter, input=script(*pieces), tools=[LOOK])
    assert all(frame["delta"] for frame in frames if "delta" in frame)


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs(client: openai.OpenAI, stream: bool) -> None:
    arguments: dict[str, Any] = {
        "model": "demo",
        "input": "hé!",
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    if stream:
        with client.responses.stream(**arguments) as events:
            entries: list[Any] = [
                entry
                for event in events
                if event.type == "response.output_text.delta"
                for entry in event.logprobs
            ]
    else:
        message = client.responses.create(**arguments).output[0]
        assert message.type == "message"
        part = message.content[0]
        assert part.type == "output_text"
        entries = part.logprobs
    assert [entry.token for entry in entries] == list("hé!")
    assert [rival.logprob for rival in entries[0].top_logprobs] == [-0.5, -9999.0]


def test_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model="demo", input=script(*THOUGHT), tools=[LOOK, STOP]
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert "response.completed" in kinds
    assert final.output_text == "It is red."
    assert [item.type for item in final.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]


class Colour(BaseModel):
    colour: str
    share: float


def test_parse(adapter: Adapter, client: openai.OpenAI) -> None:
    text = '{"colour": "red", "share": 0.5}'
    answer = client.responses.parse(model="demo", input=script({"text": text}), text_format=Colour)
    assert answer.output_parsed == Colour(colour="red", share=0.5)
    assert json.loads(adapter.spec.constraint.json_schema)["required"] == ["colour", "share"]
    with client.responses.stream(
        model="demo", input=script({"text": text}), text_format=Colour
    ) as stream:
        final = stream.get_final_response()
    assert final.output_parsed == Colour(colour="red", share=0.5)


def test_tools_round_trip(adapter: Adapter, client: openai.OpenAI) -> None:
    tools: Any = [LOOK, STOP]
    history: Any = [{"role": "user", "content": script(*THOUGHT[:1], *THOUGHT[4:])}]
    first = client.responses.create(model="demo", input=history, tools=tools)
    history += [item.to_dict() for item in first.output]
    history += [
        {
            "type": "function_call_output",
            "call_id": item.call_id,
            "output": [
                {"type": "input_text", "text": "seen"},
                {"type": "input_image", "image_url": "https://example.com/cat.jpg"},
            ],
        }
        for item in first.output
        if item.type == "function_call"
    ]
    second = client.responses.create(model="demo", input=history, tools=tools)
    assert second.output_text == "seen"
    asked, call, *results = adapter.spec.messages
    assert asked.parts[0].text.startswith("script")
    assert call.reasoning == "let me "
    assert [tool.name for tool in call.tool_calls] == ["look", "stop"]
    assert [result.tool_call_id for result in results] == ["call_1", "call_2"]
    assert results[0].parts[1].image.uri == "https://example.com/cat.jpg"
    assert [tool.name for tool in adapter.spec.tools] == ["look", "stop"]


def test_encrypted_reasoning_comes_back(adapter: Adapter, client: openai.OpenAI) -> None:
    include: Any = ["reasoning.encrypted_content"]
    first = client.responses.create(model="demo", input=script(*THOUGHT[:3]), include=include)
    item = first.output[0].to_dict()
    item |= {"content": [], "summary": []}
    later: Any = [{"role": "user", "content": "x"}, item, first.output[1].to_dict()]
    client.responses.create(model="demo", input=[*later, {"role": "user", "content": "y"}])
    assert adapter.spec.messages[1].reasoning == "let me see"


@pytest.mark.parametrize("position", range(8))
def test_a_stream_that_fails_says_so_in_both_forms(adapter: Adapter, position: int) -> None:
    response = post(adapter, input=f"fail-after {position}", stream=True)
    assert "[DONE]" not in response.text
    frames = frames_of(response.text)
    for frame in frames:
        check_event(frame)
    error, last = frames[-2:]
    assert [frame["type"] for frame in frames].count("error") == 1
    assert (error["code"], error["error"]["code"]) == ("overloaded", "overloaded")
    assert error["message"] == error["error"]["message"]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert last["response"]["output"][-1]["status"] == "incomplete"


def test_the_client_raises_in_the_middle_of_a_stream(client: openai.OpenAI) -> None:
    got: list[Any] = []
    with pytest.raises(openai.APIError, match="ENGINE_UNAVAILABLE"):
        got.extend(client.responses.create(model="demo", input="fail-after 3", stream=True))
    assert [event.type for event in got].count("response.output_text.delta") == 3


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_event_an_error_has_its_status(
    client: openai.OpenAI, stream: bool
) -> None:
    with pytest.raises(openai.RateLimitError):
        client.responses.create(model="demo", input="fail QUEUE_FULL", stream=stream)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-17", input="x", stream=stream)


def test_a_stream_ends_with_done_and_has_heartbeats(adapter: Adapter) -> None:
    body = {"model": "demo", "input": "hold", "stream": True}
    text = read_through_silence(adapter, "/v1/responses", body, ": still here")
    assert text.endswith("data: [DONE]\n\n")
    assert text.count(": still here") >= 3


def test_input_tokens_are_those_of_usage(adapter: Adapter, client: openai.OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"},
    ]
    arguments: Any = {"model": "demo", "input": [{"role": "user", "content": content}]}
    counted = client.responses.input_tokens.count(**arguments)
    asked = adapter.spec
    answer = client.responses.create(**arguments)
    assert answer.usage is not None
    assert (counted.input_tokens, counted.object) == (
        answer.usage.input_tokens,
        "response.input_tokens",
    )
    assert asked.messages == adapter.spec.messages
