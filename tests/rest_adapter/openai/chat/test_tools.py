"""Tools, calls and reasoning between OpenAI's JSON and the proto, in the forms that clients send."""

from __future__ import annotations

import base64
import json
from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.chat.stream import ChunkOptions, ChunkWriter
from rest_adapter.openai.chat.translate import FieldPaths, completion, to_spec


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "weather", "description": "The weather.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": WEATHER}
NOW = {"type": "function", "function": {"name": "now"}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
}
PNG = b"\x89PNG\r\n\x1a\n"
MODE = message_pb.ToolChoiceMode


def chat_of(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    chat, unknown = parse_chat(json.loads(json.dumps(body)))
    assert unknown == []
    return chat


def spec_of(**fields: Any) -> chat_pb.ChatCompletionSpec:
    return to_spec(chat_of(**fields), max_media_bytes=2**20)


def message_of(**message: Any) -> message_pb.Message:
    return spec_of(messages=[{"role": "user", "content": "x"}, message]).messages[1]


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        spec_of(**fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "tool",
    [
        TOOL,
        {"function": WEATHER},
        {"type": "function"} | WEATHER,
        TOOL | {"function": WEATHER | {"strict": None}, "strict": False, "defer_loading": True},
    ],
)
def test_tools_in_every_form(tool: dict[str, Any]) -> None:
    [got] = spec_of(tools=[tool]).tools
    assert (got.name, got.description, got.strict) == ("weather", "The weather.", False)
    assert json.loads(got.parameters_json_schema) == SCHEMA


def test_a_tool_with_nothing_but_a_name() -> None:
    [got] = spec_of(tools=[NOW]).tools
    assert got == message_pb.Tool(name="now", strict=False)
    [strict] = spec_of(
        tools=[{"type": "function", "function": {"name": "now", "strict": True}}]
    ).tools
    assert strict.strict


CHOICES: dict[str, tuple[Any, message_pb.ToolChoice]] = {
    "auto": ("auto", message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_AUTO)),
    "none": ("none", message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_NONE)),
    "required": ("required", message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_REQUIRED)),
    "any": ("any", message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_REQUIRED)),
    "auto as an object": (
        {"type": "auto"},
        message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_AUTO),
    ),
    "named": (
        {"type": "function", "function": {"name": "now"}},
        message_pb.ToolChoice(function_name="now"),
    ),
    "named as in Responses": (
        {"type": "function", "name": "now"},
        message_pb.ToolChoice(function_name="now"),
    ),
    "allowed": (
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [NOW]},
        },
        message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_REQUIRED, allowed_names=["now"]),
    ),
    "allowed as in Responses": (
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]},
        message_pb.ToolChoice(mode=MODE.TOOL_CHOICE_MODE_AUTO, allowed_names=["now"]),
    ),
    "absent": (None, message_pb.ToolChoice()),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_in_every_form(name: str) -> None:
    choice, wanted = CHOICES[name]
    assert spec_of(tools=[TOOL, NOW], tool_choice=choice).tool_choice == wanted
    wanted.parallel = False
    one = spec_of(tools=[TOOL, NOW], tool_choice=choice, parallel_tool_calls=False)
    assert one.tool_choice == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "auto", "parallel_tool_calls": False},
        {"tools": False, "tool_choice": "none"},
        {"tool_choice": {"type": "none"}},
        {"functions": [], "function_call": "auto"},
        {"functions": None, "function_call": {"name": None}},
    ],
)
def test_what_asks_for_no_tools_has_no_effect(fields: dict[str, Any]) -> None:
    assert spec_of(**fields) == spec_of()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "tools are an object": ({"tools": {"a": 1}}, "tools"),
    "a tool is a text": ({"tools": ["now"]}, "tools[0]"),
    "a tool of OpenAI": ({"tools": [TOOL, {"type": "web_search_preview"}]}, "tools[1].type"),
    "a custom tool": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "a number as name": ({"tools": [{"type": "function", "name": 5}]}, "tools[0].name"),
    "parameters are a text": (
        {"tools": [{"function": {"name": "f", "parameters": "{}"}}]},
        "tools[0].function.parameters",
    ),
    "strict is a text": (
        {"tools": [{"function": {"name": "f", "strict": "yes"}}]},
        "tools[0].function.strict",
    ),
    "an unknown choice": ({"tools": [NOW], "tool_choice": "maybe"}, "tool_choice"),
    "a list as choice": ({"tools": [NOW], "tool_choice": ["now"]}, "tool_choice"),
    "a choice without a name": (
        {"tools": [NOW], "tool_choice": {"type": "function", "function": {}}},
        "tool_choice.function.name",
    ),
    "an unknown kind of choice": (
        {"tools": [NOW], "tool_choice": {"type": "mcp"}},
        "tool_choice.type",
    ),
    "nothing allowed": (
        {"tools": [NOW], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
        "tool_choice.tools",
    ),
    "functions": ({"functions": [{"name": "now"}]}, "functions"),
    "a function call": ({"function_call": {"name": "now"}}, "function_call"),
    "parallel is a text": ({"tools": [NOW], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    fields, param = WRONG[name]
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["x"]}, "messages[0].tool_calls[0]"),
        (
            {"role": "assistant", "tool_calls": [CALL, {"type": "custom"}]},
            "messages[0].tool_calls[1].type",
        ),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[0].tool_calls[0].function"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]},
            "messages[0].tool_calls[0].function.name",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 5}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"role": "assistant", "content": "x", "reasoning": 5}, "messages[0].reasoning"),
        ({"role": "assistant", "function_call": "f"}, "messages[0].function_call"),
    ],
)
def test_wrong_messages_are_named(message: dict[str, Any], param: str) -> None:
    assert refused(messages=[message]).param == param


@pytest.mark.parametrize("content", [None, "", [], "I look."])
def test_an_answer_with_calls(content: object) -> None:
    other = {"index": 1, "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    got = message_of(role="assistant", content=content, tool_calls=[CALL, other])
    assert got.role == message_pb.ROLE_ASSISTANT
    assert got.parts[0].text == (content or "")
    assert list(got.tool_calls) == [
        message_pb.ToolCall(id="call_1", name="weather", arguments_json='{"city":"Paris"}'),
        message_pb.ToolCall(name="now", arguments_json='{"zone":"UTC"}'),
    ]
    empty = {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}}
    assert not message_of(role="assistant", tool_calls=[empty]).tool_calls[0].arguments_json


def test_results_have_texts_and_images() -> None:
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    parts = [{"type": "text", "text": "A map:"}, {"type": "image_url", "image_url": {"url": url}}]
    got = message_of(role="tool", tool_call_id="call_1", name="weather", content=parts)
    assert (got.role, got.tool_call_id, got.name) == (message_pb.ROLE_TOOL, "call_1", "")
    assert got.parts[0].text == "A map:"
    assert got.parts[1].image.data == PNG
    assert message_of(role="tool", content=None).parts[0].text == ""


def test_the_older_form_of_calls_and_results() -> None:
    call = {"name": "now", "arguments": "{}"}
    got = message_of(role="assistant", content=None, function_call=call)
    assert list(got.tool_calls) == [message_pb.ToolCall(name="now", arguments_json="{}")]
    result = message_of(role="function", name="now", content="12:00")
    assert (result.role, result.parts[0].text) == (message_pb.ROLE_TOOL, "12:00")


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "Hm."},
        {"reasoning": "Hm."},
        {"reasoning_content": "Hm.", "reasoning": "Hm.", "reasoning_details": [{}]},
        {"content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "x"}]},
    ],
)
def test_reasoning_goes_back(fields: dict[str, Any]) -> None:
    got = message_of(**({"role": "assistant", "content": "x"} | fields))
    assert (got.reasoning, [part.text for part in got.parts]) == ("Hm.", ["x"])
    assert not message_of(role="assistant", content="x", reasoning_content=None).reasoning
    assert not message_of(role="user", content="x", reasoning="Hm.").reasoning


@pytest.mark.parametrize(
    ("fields", "effort", "path"),
    [
        ({"reasoning_effort": "none"}, "none", "reasoning_effort"),
        ({"reasoning_effort": "xhigh"}, "xhigh", "reasoning_effort"),
        ({"reasoning": {"effort": "low"}}, "low", "reasoning.effort"),
        (
            {"chat_template_kwargs": {"reasoning_effort": "max"}, "reasoning_effort": "low"},
            "max",
            "chat_template_kwargs.reasoning_effort",
        ),
        ({"reasoning_effort": "auto"}, "", None),
        ({"reasoning_effort": None, "reasoning": {"effort": ""}}, "", None),
    ],
)
def test_reasoning_efforts(fields: dict[str, Any], effort: str, path: str | None) -> None:
    chat = chat_of(**fields)
    template = to_spec(chat, max_media_bytes=1).template
    assert template.reasoning_effort == effort
    assert not template.HasField("enable_thinking")
    if path is not None:
        assert FieldPaths(chat).param_of("spec.template.reasoning_effort") == path
    assert refused(reasoning={"effort": 5}).param == "reasoning.effort"


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("spec.tools", "tools"),
        ("spec.tools[0].name", "tools[0].function.name"),
        ("spec.tools[0].parameters_json_schema", "tools[0].function.parameters"),
        ("spec.tools[1].strict", "tools[1].strict"),
        ("spec.tools[2]", "tools[2]"),
        ("spec.tool_choice.mode", "tool_choice"),
        ("spec.tool_choice.function_name", "tool_choice"),
        ("spec.tool_choice.allowed_names", "tool_choice"),
        ("spec.tool_choice.parallel", "parallel_tool_calls"),
        ("spec.messages[0].tool_calls", "messages[0].tool_calls"),
        ("spec.messages[0].tool_calls[0].name", "messages[0].tool_calls[0].function.name"),
        (
            "spec.messages[0].tool_calls[0].arguments_json",
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("spec.messages[0].tool_calls[0].id", "messages[0].tool_calls[0].id"),
        ("spec.messages[0].tool_calls[7].name", "messages[0].tool_calls[7].name"),
        ("spec.messages[0].reasoning", "messages[0].reasoning"),
        ("spec.messages[1].tool_call_id", "messages[1].tool_call_id"),
        ("spec.messages[2].tool_calls[0].name", "messages[2].function_call.name"),
    ],
)
def test_paths_as_the_caller_wrote_them(field: str, param: str) -> None:
    chat = chat_of(
        messages=[
            {"role": "assistant", "tool_calls": [CALL], "reasoning": "Hm."},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "assistant", "function_call": {"name": "now"}},
        ],
        tools=[TOOL, {"type": "function"} | WEATHER],
    )
    assert FieldPaths(chat).param_of(field) == param


STARTED = generation_pb.Started(request_id="r", model="m", created=1)
USAGE = usage_pb.Usage(prompt_tokens=3, completion_tokens=9, total_tokens=12, reasoning_tokens=4)
CALLED = usage_pb.FINISH_REASON_TOOL_CALLS


def test_a_complete_answer_with_calls() -> None:
    choice = generation_pb.Choice(
        reasoning="Hm.",
        tool_calls=[message_pb.ToolCall(id="call_1", name="now", arguments_json="{}")],
        finish_reason=CALLED,
    )
    response = chat_pb.CreateChatCompletionResponse(started=STARTED, choices=[choice], usage=USAGE)
    document = completion(response, chat_of(tools=[NOW]), "1")
    got = ChatCompletion.model_validate(document, strict=True)
    assert got.choices[0].finish_reason == "tool_calls"
    assert document["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "Hm.",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
        ],
    }
    assert got.usage is not None
    assert got.usage.completion_tokens_details is not None
    assert got.usage.completion_tokens_details.reasoning_tokens == 4
    named = chat_of(tools=[NOW], tool_choice={"type": "function", "function": {"name": "now"}})
    assert completion(response, named, "1")["choices"][0]["finish_reason"] == "stop"


def test_a_streamed_answer_with_calls() -> None:
    event = chat_pb.StreamChatCompletionResponse

    def piece(**fields: Any) -> chat_pb.StreamChatCompletionResponse:
        return event(delta=generation_pb.Delta(**fields))

    def call(**fields: Any) -> chat_pb.StreamChatCompletionResponse:
        return piece(tool_calls=[generation_pb.ToolCallDelta(**fields)])

    writer = ChunkWriter(ChunkOptions(n=1, usage=True, logprobs=False, token_ids=False), "1")
    events = [
        event(started=STARTED),
        piece(reasoning="Hm."),
        piece(text="I look."),
        call(index=0, id="call_1", name="now", arguments_json="{"),
        call(index=0, arguments_json="}"),
        event(finished=generation_pb.Finished(reason=CALLED)),
        event(usage=USAGE),
    ]
    lines = b"".join(map(writer.render, events)).decode().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "I look."},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "now", "arguments": "{"},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]},
        {},
    ]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4
