"""`litellm` as a library, with this service as an OpenAI-compatible and as an Anthropic provider."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
import pytest


QUESTION = "What is in this picture?"
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA},
}


@pytest.fixture
def provider(url: str) -> dict[str, Any]:
    return {
        "model": "openai/qwen-vl",
        "api_base": f"{url}/v1",
        "api_key": "none",
        "temperature": 0,
        "max_retries": 0,
    }


@pytest.fixture
def asked(data_uri: str) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": data_uri}}
    return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]


def test_completion_and_its_stream(provider: dict[str, Any], asked: list[Any]) -> None:
    answer = litellm.completion(messages=asked, max_tokens=32, **provider)
    text = answer.choices[0].message.content
    assert "red circle" in text.lower()
    assert answer.usage.prompt_tokens_details.image_tokens > 0
    options = {"include_usage": True}
    chunks = list(
        litellm.completion(
            messages=asked, max_tokens=32, stream=True, stream_options=options, **provider
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == text
    assert litellm.stream_chunk_builder(chunks).usage.total_tokens > 0


def test_tools_and_schemas(provider: dict[str, Any], asked: list[Any]) -> None:
    answer = litellm.completion(
        messages=asked, tools=[TOOL], tool_choice="required", max_tokens=120, **provider
    )
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["colour"] in ("red", "blue")
    history = [
        *asked,
        answer.choices[0].message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    assert litellm.completion(messages=history, tools=[TOOL], max_tokens=8, **provider).choices
    form = {"name": "seen", "schema": SCHEMA, "strict": True}
    answer = litellm.completion(
        messages=asked,
        response_format={"type": "json_schema", "json_schema": form},
        max_tokens=60,
        **provider,
    )
    assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "blue")


def test_the_responses_api(provider: dict[str, Any], data_uri: str) -> None:
    content = [
        {"type": "input_image", "image_url": data_uri},
        {"type": "input_text", "text": QUESTION},
    ]
    options = {name: provider[name] for name in ("model", "api_base", "api_key", "temperature")}
    answer = litellm.responses(
        input=[{"role": "user", "content": content}], max_output_tokens=32, **options
    )
    [message] = answer.output
    assert "red circle" in message.content[0].text.lower()


def test_anthropic_messages(url: str, asked: list[Any]) -> None:
    answer = litellm.completion(
        model="anthropic/qwen-vl",
        api_base=url,
        api_key="none",
        messages=asked,
        max_tokens=32,
        temperature=0,
    )
    assert "red circle" in answer.choices[0].message.content.lower()


def test_the_asynchronous_function(provider: dict[str, Any], asked: list[Any]) -> None:
    answer = asyncio.run(litellm.acompletion(messages=asked, max_tokens=32, **provider))
    assert answer.choices[0].finish_reason == "stop"


def test_errors_have_litellm_s_classes(provider: dict[str, Any], url: str) -> None:
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=long, **provider)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(
            model="anthropic/qwen-vl", api_base=url, api_key="none", messages=long, max_tokens=8
        )
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(
            messages=[{"role": "user", "content": "x"}], **(provider | {"model": "openai/other"})
        )
