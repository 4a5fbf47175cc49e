"""Answers of /v1/chat/completions as OpenAI's own client reads them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import openai
import pytest
import requests

from tests.rest_adapter.conftest import Adapter, read_through_silence
from tests.rest_adapter.fake_service import CREATED


PNG = b"\x89PNG\r\n\x1a\n not really"
MESSAGES: Any = [{"role": "user", "content": "hé!"}]


def events_of(response: requests.Response) -> list[str]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return [block for block in response.content.decode().split("\n\n") if block]


def chunks_of(response: requests.Response) -> list[dict]:
    events = [event for event in events_of(response) if not event.startswith(":")]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_whole_answer(adapter: Adapter, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="qwen-vl", messages=MESSAGES)
    assert answer.choices[0].message.content == "hé!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model, answer.created, answer.object) == ("demo", CREATED, "chat.completion")
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 13
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.usage.prompt_tokens_details.cache_write_tokens == 2


def test_required_fields_are_present_when_null(adapter: Adapter) -> None:
    choice = adapter.ask().json()["choices"][0]
    assert choice["logprobs"] is None
    assert choice["message"]["refusal"] is None


@pytest.mark.parametrize("usage", [True, False])
def test_stream(adapter: Adapter, usage: bool) -> None:
    chunks = chunks_of(
        adapter.ask("hé!", stream=True, n=2, stream_options={"include_usage": usage})
    )
    assert len({(c["id"], c["created"], c["model"], c["system_fingerprint"]) for c in chunks}) == 1
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 6
        assert all(chunk["usage"] is None for chunk in chunks)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index in range(2):
        mine = [choice for choice in choices if choice["index"] == index]
        assert [choice for choice in mine if "role" in choice["delta"]] == mine[:1]
        assert [choice for choice in mine if choice["finish_reason"]] == mine[-1:]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "hé!"


def test_openai_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "hé!"


def test_openai_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=MESSAGES) as stream:
        stream.until_done()
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "hé!"
    assert final.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_in_openai_shape(client: openai.OpenAI, stream: bool) -> None:
    arguments: dict[str, Any] = {
        "model": "demo",
        "messages": MESSAGES,
        "logprobs": True,
        "top_logprobs": 2,
    }
    if stream:
        chunks = client.chat.completions.create(**arguments, stream=True)
        content = [
            item
            for chunk in chunks
            if chunk.choices[0].logprobs
            for item in chunk.choices[0].logprobs.content
        ]
    else:
        content = client.chat.completions.create(**arguments).choices[0].logprobs.content
    assert [item.token for item in content] == list("hé!")
    assert content[1].bytes == list("é".encode())
    assert content[0].logprob == -0.5
    assert [rival.logprob for rival in content[0].top_logprobs] == [-0.5, -9999.0]


def test_token_ids_and_prompt_logprobs(adapter: Adapter) -> None:
    answer = adapter.ask("hé!", return_token_ids=True, prompt_logprobs=1).json()
    ids = [ord(character) for character in "hé!"]
    expected = [None, {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}}]
    assert answer["choices"][0]["token_ids"] == ids
    assert answer["prompt_token_ids"] == [1, 2]
    assert answer["prompt_logprobs"] == expected
    chunks = chunks_of(adapter.ask("hé!", return_token_ids=True, prompt_logprobs=1, stream=True))
    assert chunks[0]["prompt_token_ids"] == [1, 2]
    assert [c["prompt_logprobs"] for c in chunks if "prompt_logprobs" in c] == [expected]
    streamed = [
        token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"]
    ]
    assert streamed == ids


def test_stop_and_length(adapter: Adapter) -> None:
    choice = adapter.ask("a!", stop="!", max_tokens=1).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["stop_reason"] == "!"


def test_image_bytes_arrive_undecoded_and_are_counted(adapter: Adapter) -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": "x"},
    ]
    answer = adapter.ask(messages=[{"role": "user", "content": content}])
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 4
    assert adapter.spec.messages[0].parts[0].image.data == PNG


def test_heartbeats_on_a_silent_stream(adapter: Adapter) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "hold"}], "stream": True}
    text = read_through_silence(adapter, "/v1/chat/completions", body, "\n\n:")
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("\n\n:") >= 3


def test_metadata_goes_along(adapter: Adapter) -> None:
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    headers = {"authorization": "Bearer k", "x-request-id": "mine", "traceparent": trace}
    assert adapter.ask(headers=headers).headers["x-request-id"] == "mine"
    seen = adapter.seen.metadata[-1]
    assert seen["qwenvl-request-id"] == adapter.spec.request_id
    assert (seen["authorization"], seen["x-request-id"], seen["traceparent"]) == (
        "Bearer k",
        "mine",
        trace,
    )


def test_headers_that_grpc_cannot_carry_are_left_out(adapter: Adapter) -> None:
    headers = {"authorization": "Bearer \xe9", "x-request-id": "a b", "traceparent": "x"}
    answer = adapter.ask(headers=headers)
    assert answer.status_code == 200
    assert answer.headers["x-request-id"] == adapter.spec.request_id
    assert not {"authorization", "traceparent", "x-request-id"} & adapter.seen.metadata[-1].keys()


def test_without_an_id_of_the_client_the_response_has_that_of_the_request(adapter: Adapter) -> None:
    for body, stream in (({}, False), ({}, True), ({"request_id": "named"}, False)):
        answer = adapter.ask(stream=stream, **body)
        assert answer.headers["x-request-id"] == adapter.spec.request_id
        assert "x-request-id" not in adapter.seen.metadata[-1]
    assert adapter.spec.request_id == "named"


async def test_32_streams_at_once(adapter: Adapter) -> None:
    async def text_of(client: openai.AsyncOpenAI, question: str) -> str:
        stream = await client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": question}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    questions = [f"question {number} " * 20 for number in range(32)]
    async with openai.AsyncOpenAI(
        base_url=f"{adapter.url}/v1", api_key="none", max_retries=0
    ) as client:
        answers = await asyncio.gather(*(text_of(client, question) for question in questions))
    assert answers == questions


def test_boxes_are_told_if_asked_for(adapter: Adapter) -> None:
    expected = [{"label": "猫", "box": [1.0, 2.25, 66.8, 100.0], "image_index": 1}]
    [choice] = adapter.ask("x", grounding=True).json()["choices"]
    assert choice["grounding"] == expected
    assert "grounding" not in adapter.ask("x").json()["choices"][0]
    chunks = chunks_of(adapter.ask("x", stream=True, grounding=True, n=2))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ends = [choice for choice in choices if choice["finish_reason"]]
    assert [choice.get("grounding") for choice in ends] == [expected, expected]
    assert all("grounding" not in choice for choice in choices if not choice["finish_reason"])
    chunks = chunks_of(adapter.ask("x", stream=True))
    assert all("grounding" not in choice for chunk in chunks for choice in chunk["choices"])
