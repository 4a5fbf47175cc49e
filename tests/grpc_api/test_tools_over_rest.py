"""Tools and reasoning from OpenAI's client through the adapter and the front, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
import json
from pathlib import Path
import shutil
from typing import Any

import openai
from openai.types.chat import ChatCompletionToolParam
import pytest

from inference_service.backend.served_model import ServedModel
from tests.grpc_api.conftest import NAMES, OpenService, Service
from tests.rest_adapter.conftest import open_adapter
from tests.support.tool_templates import THINKING


TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "now"}},
]
CALLS = """Let me see.

<tool_call>
{"name": "weather", "arguments": {"city": "東京"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call>"""


@pytest.fixture
async def client(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async for one in client_of(service):
        yield one


async def client_of(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    with open_adapter(grpc_target=service.target()) as adapter:
        async with openai.AsyncOpenAI(
            base_url=f"{adapter.url}/v1", api_key="none", max_retries=0
        ) as client:
            yield client


async def test_a_loop_of_calls_and_results(service: Service, client: openai.AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": CALLS}]
    first = await client.chat.completions.create(model="echo", messages=messages, tools=TOOLS)
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    messages.append(choice.message.model_dump())
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert isinstance(json.loads(call.function.arguments), dict)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "A result."})
    second = await client.chat.completions.create(model="echo", messages=messages, tools=TOOLS)
    assert second.choices[0].finish_reason == "stop"
    # The engine answers with the last turn of the user, which the results are.
    result = "<tool_response>\nA result.\n</tool_response>"
    assert second.choices[0].message.content == f"{result}\n{result}"
    prompt = service.model.tokenizer.decode(service.engine.requests[-1].prompt_token_ids)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "東京"}}\n</tool_call>' in prompt


async def test_calls_are_streamed(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(
        model="echo",
        messages=[{"role": "user", "content": CALLS}],
        tools=TOOLS,
        stream_options={"include_usage": True},
    ) as stream:
        kinds = [event.type async for event in stream]
        whole = await stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert kinds.count("tool_calls.function.arguments.delta") > 10
    message = whole.choices[0].message
    assert message.content == "Let me see."
    assert [call.function.name for call in message.tool_calls or ()] == ["weather", "now"]
    assert whole.choices[0].finish_reason == "tool_calls"


async def test_errors_name_the_field_of_the_caller(client: openai.AsyncOpenAI) -> None:
    bad: Any = [{"type": "function", "function": {"name": "a b"}}]
    cases: dict[str, dict[str, Any]] = {
        "tools[0].function.name": {"tools": bad},
        "tool_choice": {"tool_choice": "required"},
        "reasoning_effort": {"reasoning_effort": "huge"},
    }
    for param, fields in cases.items():
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(
                model="echo", messages=[{"role": "user", "content": "x"}], **fields
            )
        assert caught.value.param == param
        assert param in caught.value.message


async def test_reasoning_is_a_field_of_its_own(
    open_service: OpenService, model_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    service = await open_service(served=ServedModel.load(tmp_path, NAMES))
    async for client in client_of(service):
        answer = await client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "Hm.\n</think>\n\nYes."}]
        )
        message = answer.choices[0].message
        assert (message.content, (message.model_extra or {})["reasoning_content"]) == (
            "Yes.",
            "Hm.",
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == len("Hm.\n</think>")
        chunks = await client.chat.completions.create(
            model="echo",
            messages=[{"role": "user", "content": "Hm.\n</think>\n\nYes."}],
            stream=True,
        )
        deltas = [chunk.choices[0].delta.model_dump(exclude_none=True) async for chunk in chunks]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
        assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
