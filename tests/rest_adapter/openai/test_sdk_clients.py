"""Clients that people really use, unchanged: OpenAI's SDK in both flavours, and the tutorial's `requests` call."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import requests

from tests.rest_adapter.conftest import Adapter


QUESTION: Any = [{"role": "user", "content": "Über 图片 🖼️!"}]


def test_tutorial_client(adapter: Adapter) -> None:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.jpg"}},
    ]
    response = requests.post(
        f"{adapter.url}/v1/chat/completions",
        json={
            "model": "qwen-vl",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1024,
            "temperature": 0.5,
        },
        timeout=30,
    )
    assert response.json()["choices"][0]["message"]["content"] == "What is this?"
    assert adapter.spec.messages[0].parts[1].image.uri == "https://example.com/cat.jpg"
    assert adapter.spec.sampling.max_tokens == 1024
    assert adapter.spec.sampling.temperature == 0.5


async def test_async_client_streams_usage_last(adapter: Adapter) -> None:
    async with openai.AsyncOpenAI(base_url=f"{adapter.url}/v1", api_key="none") as client:
        stream = await client.chat.completions.create(
            model="demo", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == QUESTION[0]["content"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(text)


def test_raw_response_has_the_request_id(client: openai.OpenAI) -> None:
    response = client.chat.completions.with_raw_response.create(model="demo", messages=QUESTION)
    assert response.headers["x-request-id"]
    assert response.parse().choices[0].message.content == QUESTION[0]["content"]


def test_extensions_by_extra_body(adapter: Adapter, client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="demo", messages=QUESTION, extra_body={"top_k": 5, "repetition_penalty": 1.1}
    )
    assert adapter.spec.sampling.top_k == 5
    assert adapter.spec.sampling.repetition_penalty == 1.1


def test_history_as_the_client_returns_it(adapter: Adapter, client: openai.OpenAI) -> None:
    """An answer of this server is a valid message of the next request."""
    first = client.chat.completions.create(model="demo", messages=QUESTION)
    history = [*QUESTION, first.choices[0].message.model_dump(), *QUESTION]
    client.chat.completions.create(model="demo", messages=history)
    assert [part.text for part in adapter.spec.messages[1].parts] == [QUESTION[0]["content"]]


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("INVALID_IMAGE", openai.BadRequestError),
        ("UNAUTHENTICATED", openai.AuthenticationError),
        ("PERMISSION_DENIED", openai.PermissionDeniedError),
        ("MODEL_NOT_FOUND", openai.NotFoundError),
        ("REQUEST_ID_IN_USE", openai.ConflictError),
        ("QUEUE_FULL", openai.RateLimitError),
        ("INTERNAL", openai.InternalServerError),
        ("DRAINING", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_error_classes(
    client: openai.OpenAI, reason: str, error: type[openai.APIStatusError], stream: bool
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": f"fail {reason}"}], stream=stream
        )
    assert isinstance(caught.value.code, str)


@pytest.mark.parametrize("reason", ["REQUEST_ID_IN_USE", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_client_does_not_repeat_what_is_useless(adapter: Adapter, reason: str) -> None:
    with (
        openai.OpenAI(base_url=f"{adapter.url}/v1", api_key="none", max_retries=2) as client,
        pytest.raises(openai.APIStatusError),
    ):
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": f"fail {reason}"}]
        )
    assert adapter.seen.calls == 1


def test_error_in_the_middle_of_a_stream(adapter: Adapter, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "fail-after 3"}], stream=True
    )
    got: list[str] = []
    with pytest.raises(openai.APIError):
        got.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(got) == "fai"
    assert adapter.seen.calls == 1, "a stream is never repeated after its first event"


@pytest.mark.parametrize("position", range(8))
def test_stream_that_fails_ends_with_the_error_alone(adapter: Adapter, position: int) -> None:
    response = adapter.ask(f"fail-after {position}", stream=True)
    events = [event for event in response.text.split("\n\n") if event.startswith("data: ")]
    last = json.loads(events[-1].removeprefix("data: "))
    assert set(last) == {"error"}
    assert last["error"]["code"] == "overloaded"
    assert "[DONE]" not in response.text


def test_models(client: openai.OpenAI) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == ["demo", "org/model", "qwen-vl"]
    assert {model.object for model in listed} == {"model"}
    assert client.models.retrieve("qwen-vl").id == "qwen-vl"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-17")
    assert caught.value.code == "model_not_found"


def test_model_whose_name_has_a_slash(adapter: Adapter) -> None:
    for path in ("org/model", "org%2Fmodel"):
        response = requests.get(f"{adapter.url}/v1/models/{path}", timeout=10)
        assert response.json()["id"] == "org/model"
