"""Tools and reasoning from OpenAI's client through the adapter and the front, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
import json
from pathlib import Path
import shutil
from typing import Any

import httpx
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


CITIES = {"call_1": "Paris", "call_2": "Rome"}


def of_chat(calls: list[str], results: list[str]) -> dict[str, Any]:
    made = [
        {
            "id": call,
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": CITIES[call]})},
        }
        for call in calls
    ]
    answers = [
        {"role": "tool", "tool_call_id": call, "content": CITIES.get(call, "?").upper()}
        for call in results
    ]
    asked = {"role": "user", "content": "x"}
    said = {"role": "assistant", "content": "Yes.", "tool_calls": made}
    return {"messages": [asked, said, *answers]}


def of_responses(calls: list[str], results: list[str]) -> dict[str, Any]:
    made = [
        {
            "type": "function_call",
            "call_id": call,
            "name": "weather",
            "arguments": json.dumps({"city": CITIES[call]}),
        }
        for call in calls
    ]
    answers = [
        {"type": "function_call_output", "call_id": call, "output": CITIES.get(call, "?").upper()}
        for call in results
    ]
    return {"input": [{"role": "user", "content": "x"}, *made, *answers]}


def of_messages(calls: list[str], results: list[str]) -> dict[str, Any]:
    made = [
        {"type": "tool_use", "id": call, "name": "weather", "input": {"city": CITIES[call]}}
        for call in calls
    ]
    answers = [
        {"type": "tool_result", "tool_use_id": call, "content": CITIES.get(call, "?").upper()}
        for call in results
    ]
    said = [{"type": "text", "text": "Yes."}, *made]
    turns = [("user", "x"), ("assistant", said), ("user", answers)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "max_tokens": 8}


APIS: dict[str, Callable[[list[str], list[str]], dict[str, Any]]] = {
    "chat/completions": of_chat,
    "responses": of_responses,
    "messages": of_messages,
}
BOTH = ["call_1", "call_2"]


@pytest.mark.parametrize("api", APIS)
async def test_results_are_read_as_those_of_their_calls(
    service: Service, client: openai.AsyncOpenAI, api: str
) -> None:
    prompts = []
    for results in (BOTH, BOTH[::-1]):
        body = {"model": "echo"} | APIS[api](BOTH, results)
        await client.post(f"/{api}", body=body, cast_to=object)
        ids = service.engine.requests[-1].prompt_token_ids
        prompts.append(service.model.tokenizer.decode(ids))
    assert prompts[0] == prompts[1]
    places = [prompts[0].index(text) for text in ("Paris", "Rome", "PARIS", "ROME")]
    assert places == sorted(places)


UNBOUND: dict[str, tuple[list[str], list[str], tuple[str, str, str]]] = {
    "an id of no call": (
        BOTH,
        ["call_1", "call_3"],
        (
            "messages[3].tool_call_id",
            "input[4].call_id",
            "messages.2.content.1.tool_use_id",
        ),
    ),
    "two results of one call": (
        BOTH,
        ["call_1", "call_1"],
        (
            "messages[3].tool_call_id",
            "input[4].call_id",
            "messages.2.content.1.tool_use_id",
        ),
    ),
    "a result that is missing": (
        BOTH,
        ["call_2"],
        ("messages[1].tool_calls[0]", "input[1]", "messages.1.content.1"),
    ),
    "one id twice": (
        ["call_1", "call_1"],
        ["call_1"],
        (
            "messages[1].tool_calls[1].id",
            "input[2].call_id",
            "messages.1.content.2.id",
        ),
    ),
    "a result without calls": (
        [],
        ["call_1"],
        (
            "messages[2].tool_call_id",
            "input[1].call_id",
            "messages.2.content.0.tool_use_id",
        ),
    ),
}


@pytest.mark.parametrize("api", APIS)
async def test_what_belongs_to_no_call_is_refused(client: openai.AsyncOpenAI, api: str) -> None:
    for calls, results, fields in UNBOUND.values():
        body = {"model": "echo"} | APIS[api](calls, results)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.post(f"/{api}", body=body, cast_to=object)
        assert fields[list(APIS).index(api)] in json.dumps(caught.value.response.json())


ONE_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "X"}}\n</tool_call>'
ENDS: dict[str, dict[str, Any]] = {
    "a limit": {"max_tokens": 30, "max_output_tokens": 30},
    "a limit behind the tag": {"max_tokens": 16, "max_output_tokens": 16},
    "a stop string": {"stop": ["weather"], "stop_sequences": ["weather"]},
}


FORCED: dict[str, tuple[dict[str, Any], object, tuple[str, ...]]] = {
    "chat/completions": (
        {"type": "function", "function": {"name": "weather"}},
        "required",
        ("max_tokens", "stop"),
    ),
    "responses": (
        {"type": "function", "name": "weather", "parameters": {}},
        "required",
        ("max_output_tokens", "stop"),
    ),
    "messages": (
        {"name": "weather", "input_schema": {"type": "object"}},
        {"type": "any"},
        ("max_tokens", "stop_sequences"),
    ),
}


@pytest.mark.parametrize("api", APIS)
async def test_a_call_that_is_cut_before_its_name_is_not_text(
    client: openai.AsyncOpenAI, api: str
) -> None:
    tool, choice, known = FORCED[api]
    asked = {"input": ONE_CALL} if api == "responses" else {"messages": [user(ONE_CALL)]}
    for end in ENDS.values():
        body = {"model": "echo", "tools": [tool], "tool_choice": choice} | asked
        body |= {"max_tokens": 500} if api == "messages" else {}
        body |= {key: value for key, value in end.items() if key in known}
        answer: Any = await client.post(f"/{api}", body=body, cast_to=object)
        assert "tool_call>" not in json.dumps(answer)
        if api == "chat/completions":
            assert answer["choices"][0]["message"]["content"] is None
        async with httpx.AsyncClient(timeout=30) as plain:
            response = await plain.post(f"{client.base_url}{api}", json=body | {"stream": True})
        lines = response.text.splitlines()
        events = [line for line in lines if line.startswith("data: {") and '"tools"' not in line]
        assert events
        assert not any("<" in event for event in events)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
