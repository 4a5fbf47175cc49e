"""What becomes of a request: the messages of the contract, in order, and the way back from a proto field."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.anthropic.messages.field_paths import FieldPaths
from rest_adapter.anthropic.messages.schema import parse_count, parse_messages
from rest_adapter.anthropic.messages.translate import to_spec
from rest_adapter.errors import ApiError


TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
CALL: dict[str, Any] = {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": [1, "é"]}}
PICTURE: dict[str, Any] = {
    "type": "image",
    "source": {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(b"ab").decode(),
    },
}


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value} | fields


def result(content: Any, call_id: str = "c1", **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": content} | fields


def translated(*messages: Any, **fields: Any) -> tuple[chat_pb.ChatCompletionSpec, FieldPaths]:
    """The request as a proto; texts among the messages are the user's."""
    given = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    body = {"model": "m", "max_tokens": 2000, "messages": given} | fields
    request, unknown = parse_messages(body)
    assert not unknown
    spec, places = to_spec(request, max_media_bytes=1000)
    assert len(places) == len(spec.messages)
    return spec, FieldPaths(request, places)


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*content]}


def assistant(*content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": [*content]}


def shape(spec: chat_pb.ChatCompletionSpec) -> list[tuple[str, list[str]]]:
    """The roles, and the parts as texts; images as `<image>`."""
    return [
        (
            message_pb.Role.Name(message.role).removeprefix("ROLE_").lower(),
            [part.text if part.HasField("text") else "<image>" for part in message.parts],
        )
        for message in spec.messages
    ]


def test_instructions_are_one_text_without_billing() -> None:
    billing = "x-anthropic-billing-header: cc_version=2.1; cch=1f2e3;"
    spec, _ = translated("q", system=[text(billing), text("One."), text("Two.")])
    assert shape(spec) == [("system", ["One.\n\nTwo."]), ("user", ["q"])]
    for nothing in ("", [], [text(billing)], [text("")], None):
        spec, _ = translated("q", system=nothing)
        assert shape(spec) == [("user", ["q"])]
    assert shape(translated("q", system="One.")[0])[0] == ("system", ["One."])


def test_late_instructions_stay_in_their_place() -> None:
    late = {"role": "system", "content": [text("Be brief.")]}
    spec, _ = translated("a", assistant(text("b")), late, "c", system="s")
    assert [role for role, _ in shape(spec)] == ["system", "user", "assistant", "system", "user"]


def test_results_of_tools_are_messages_in_order() -> None:
    calls = [CALL, CALL | {"id": "c2"}]
    turn = user(
        text("before"),
        result("plain"),
        result([text("see"), PICTURE, text("this")], "c2"),
        text("behind"),
        PICTURE,
    )
    spec, _ = translated("q", assistant(text("I ask."), *calls), turn, tools=[TOOL])
    assert shape(spec) == [
        ("user", ["q"]),
        ("assistant", ["I ask."]),
        ("user", ["before"]),
        ("tool", ["plain"]),
        ("tool", ["see", "<image>", "this"]),
        ("user", ["behind", "<image>"]),
    ]
    assert [m.tool_call_id for m in spec.messages] == ["", "", "", "c1", "c2", ""]
    first, second = spec.messages[1].tool_calls
    assert (first.id, first.name, first.arguments_json) == ("c1", "f", '{"x":[1,"é"]}')
    assert second.id == "c2"
    assert spec.messages[4].parts[1].image.data == b"ab"


@pytest.mark.parametrize(
    ("content", "is_error", "parts"),
    [
        (None, False, [""]),
        ([], False, [""]),
        ("", True, ["Error"]),
        (None, True, ["Error"]),
        ("no file", True, ["Error: no file"]),
        ("error: no file", True, ["error: no file"]),
        ([PICTURE], True, ["Error", "<image>"]),
        ([PICTURE, text("no file")], True, ["<image>", "Error: no file"]),
        ([PICTURE], False, ["<image>"]),
    ],
)
def test_results_of_failed_tools(content: Any, is_error: bool, parts: list[str]) -> None:
    spec, paths = translated(
        "q", assistant(CALL), user(result(content, is_error=is_error)), tools=[TOOL]
    )
    assert shape(spec)[-1] == ("tool", parts)
    for index in range(len(parts)):
        param = paths.param_of(f"spec.messages[2].parts[{index}]")
        assert param is not None
        assert param.startswith("messages[2].content[0]")


def test_reasoning_of_earlier_answers() -> None:
    thoughts = [{"type": "thinking", "thinking": t, "signature": "s"} for t in ("One.", "", "Two.")]
    hidden = {"type": "redacted_thinking", "data": "aGk="}
    spec, _ = translated("q", assistant(*thoughts, hidden, text("a")), "q")
    assert spec.messages[1].reasoning == "One.\n\nTwo."
    assert shape(spec)[1] == ("assistant", ["a"])
    spec, _ = translated("q", assistant(hidden), "q")
    assert shape(spec)[1] == ("assistant", [])


def test_an_answer_at_the_end_is_continued() -> None:
    spec, paths = translated("q", {"role": "assistant", "content": "The answer is ("})
    assert spec.template.continue_final_message
    assert not spec.template.HasField("add_generation_prompt")
    assert paths.param_of("spec.template.continue_final_message") == "messages[1]"
    assert not translated("q")[0].template.HasField("continue_final_message")


@pytest.mark.parametrize("content", ["", [], None, [text("")], [{"type": "redacted_thinking"}]])
def test_nothing_cannot_be_continued(content: Any) -> None:
    with pytest.raises(ApiError) as caught:
        translated("q", {"role": "assistant", "content": content})
    assert caught.value.param == "messages[1]"


def test_a_call_without_a_result_cannot_be_continued() -> None:
    with pytest.raises(ApiError) as caught:
        translated("q", assistant(text("a"), CALL), tools=[TOOL])
    assert caught.value.param == "messages[1].content[1]"


@pytest.mark.parametrize("call_id", ["", "c2", "later"])
def test_results_without_a_call(call_id: str) -> None:
    with pytest.raises(ApiError) as caught:
        translated(
            "q",
            assistant(CALL),
            user(result("x", call_id)),
            assistant(CALL | {"id": "later"}),
            user(result("x", "later")),
            tools=[TOOL],
        )
    assert caught.value.param == "messages[2].content[0].tool_use_id"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "between_tools"}}, False),
        ({"thinking": {"type": "disabled"}}, False),
    ],
)
def test_thinking(fields: dict[str, Any], expected: bool | None) -> None:
    template = translated("q", **fields)[0].template
    assert (template.enable_thinking if template.HasField("enable_thinking") else None) == expected
    assert template.HasField("prefer_thinking") == (expected is None)


def test_without_thinking_a_model_that_can_be_kept_from_it_is() -> None:
    efforts: Any = ({}, {"output_config": {"effort": "max"}})
    for fields in efforts:
        template = translated("q", **fields)[0].template
        assert template.prefer_thinking is False
        assert template.HasField("prefer_thinking")
    adaptive: Any = {"thinking": {"type": "adaptive"}}
    assert not translated("q", **adaptive)[0].template.HasField("prefer_thinking")


def test_a_model_that_decides_itself_may_be_one_that_never_thinks() -> None:
    spec, paths = translated("q", thinking={"type": "adaptive"})
    assert not spec.template.HasField("enable_thinking")
    assert spec.template.reasoning_effort == "high"
    assert paths.param_of("spec.template.reasoning_effort") == "thinking.type"
    adaptive: Any = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    assert translated("q", **adaptive)[0].template.reasoning_effort == "low"


def test_effort_and_form() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = {"type": "json_schema", "schema": schema}
    spec, paths = translated("q", output_config={"effort": "xhigh", "format": form})
    assert spec.template.reasoning_effort == "xhigh"
    assert paths.param_of("spec.template.reasoning_effort") == "output_config.effort"
    assert spec.constraint.json_schema == '{"type":"object","properties":{"b":{},"a":{}}}'
    assert paths.param_of("spec.constraint") == "output_config.format.schema"
    spec, paths = translated("q", output_format=form)
    assert spec.constraint.json_schema.startswith('{"type":"object"')
    assert paths.param_of("spec.constraint.json_schema") == "output_format.schema"
    assert not translated("q", output_config={"format": None})[0].HasField("constraint")


def test_tools() -> None:
    tools = [
        {"type": "custom", "name": "f", "description": "d", "input_schema": {"b": 1, "a": 2}},
        {"name": "g", "input_schema": {}, "strict": True, "cache_control": {"type": "ephemeral"}},
    ]
    first, second = translated("q", tools=tools)[0].tools
    assert (first.name, first.description) == ("f", "d")
    assert first.parameters_json_schema == '{"b":1,"a":2}'
    assert not first.HasField("strict")
    assert second.strict


@pytest.mark.parametrize(
    ("choice", "mode", "name"),
    [
        ({"type": "auto"}, message_pb.TOOL_CHOICE_MODE_AUTO, ""),
        ({"type": "any"}, message_pb.TOOL_CHOICE_MODE_REQUIRED, ""),
        ({"type": "none"}, message_pb.TOOL_CHOICE_MODE_NONE, ""),
        ({"type": "tool", "name": "f"}, message_pb.TOOL_CHOICE_MODE_UNSPECIFIED, "f"),
    ],
)
@pytest.mark.parametrize("disable", [None, True, False])
def test_tool_choice(choice: dict, mode: int, name: str, disable: bool | None) -> None:
    asked = choice | {"disable_parallel_tool_use": disable}
    found = translated("q", tools=[TOOL], tool_choice=asked)[0].tool_choice
    assert (found.mode, found.function_name) == (mode, name)
    assert (found.parallel if found.HasField("parallel") else None) == (
        None if disable is None else not disable
    )


@pytest.mark.parametrize("kind", ["auto", "none"])
def test_a_choice_of_no_tools_is_none(kind: str) -> None:
    spec, _ = translated("q", tools=[], tool_choice={"type": kind})
    assert not spec.HasField("tool_choice")


def test_stop_sequences() -> None:
    assert [*translated("q", stop_sequences=["\n", "", "a"])[0].stop.strings] == ["\n", "a"]


def test_a_count_needs_no_maximum() -> None:
    request, _ = parse_count({"model": "m", "messages": [{"role": "user", "content": "q"}]})
    spec, _ = to_spec(request, max_media_bytes=1000)
    assert not spec.sampling.HasField("max_tokens")
    with pytest.raises(ApiError) as caught:
        parse_messages({"model": "m", "messages": [{"role": "user", "content": "q"}]})
    assert caught.value.param == "max_tokens"


def test_images_of_a_request_have_a_limit_together() -> None:
    huge = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(b"a" * 600).decode(),
    }
    block = {"type": "image", "source": huge}
    translated(user(block))
    with pytest.raises(ApiError) as caught:
        translated(user(block, block))
    assert caught.value.status == 413


HISTORY: tuple[Any, ...] = (
    user(text("q"), PICTURE, {"type": "image", "source": {"type": "url", "url": "https://h/"}}),
    assistant({"type": "thinking", "thinking": "t", "signature": "s"}, text("a"), CALL),
    user(result([text("r"), PICTURE]), result("plain"), text("z")),
    "end",
)
PARAMS = {
    "spec.model": "model",
    "spec.messages": "messages",
    "spec.messages[0]": "system",
    "spec.messages[0].role": "system",
    "spec.messages[0].parts[0].text": "system",
    "spec.messages[1].role": "messages[0].role",
    "spec.messages[1].parts": "messages[0].content",
    "spec.messages[1].parts[0]": "messages[0].content[0].text",
    "spec.messages[1].parts[1].image": "messages[0].content[1].source.data",
    "spec.messages[1].parts[2].image": "messages[0].content[2].source.url",
    "spec.messages[1].parts[2].image.uri": "messages[0].content[2].source.url",
    "spec.messages[1].parts[2].image.oversized": (
        "messages[0].content[2].transformations.oversized_image"
    ),
    "spec.messages[2].reasoning": "messages[1].content[0]",
    "spec.messages[2].parts[0]": "messages[1].content[1].text",
    "spec.messages[2].tool_calls": "messages[1]",
    "spec.messages[2].tool_calls[0]": "messages[1].content[2]",
    "spec.messages[2].tool_calls[0].arguments_json": "messages[1].content[2].input",
    "spec.messages[2].tool_calls[0].name": "messages[1].content[2].name",
    "spec.messages[2].tool_calls[7]": "messages[1]",
    "spec.messages[3].role": "messages[2].content[0].type",
    "spec.messages[3].tool_call_id": "messages[2].content[0].tool_use_id",
    "spec.messages[3].parts[1].image": "messages[2].content[0].content[1].source.data",
    "spec.messages[4].parts[0].text": "messages[2].content[1].content",
    "spec.messages[5].parts[0].text": "messages[2].content[2].text",
    "spec.messages[6].parts[0].text": "messages[3].content",
    "spec.sampling.temperature": "temperature",
    "spec.sampling.max_tokens": "max_tokens",
    "spec.stop.strings": "stop_sequences",
    "spec.stop.strings[2]": "stop_sequences",
    "spec.tools": "tools",
    "spec.tools[1].name": "tools[1].name",
    "spec.tools[0].parameters_json_schema": "tools[0].input_schema",
    "spec.tool_choice": "tool_choice",
    "spec.tool_choice.function_name": "tool_choice.name",
    "spec.tool_choice.mode": "tool_choice.type",
    "spec.tool_choice.parallel": "tool_choice.disable_parallel_tool_use",
    "spec.template.enable_thinking": "thinking.type",
    "spec.constraint": "output_config.format.schema",
    "spec.request_id": None,
    "spec.": None,
}


@pytest.mark.parametrize("field", PARAMS)
def test_fields_of_the_service_in_the_words_of_the_request(field: str) -> None:
    first = assistant({"type": "thinking", "thinking": "t", "signature": "s"}, text("a"), CALL)
    turn = user(result([text("r"), PICTURE]), result("plain"), text("z"))
    _, paths = translated(HISTORY[0], first, turn, "end", system=[text("s")], tools=[TOOL])
    assert paths.param_of(field) == PARAMS[field]


def test_every_field_of_the_contract_has_some_name() -> None:
    """Fields that no request sets may keep their own name, but nothing fails."""
    _, paths = translated("q")

    def walk(message: Any, prefix: str, depth: int) -> None:
        for field in message.fields:
            path = f"{prefix}.{field.name}" + ("[0]" if field.is_repeated else "")
            found = paths.param_of(path)
            assert found is None or not found.startswith("spec")
            if field.message_type is not None and depth:
                walk(field.message_type, path, depth - 1)

    walk(chat_pb.ChatCompletionSpec.DESCRIPTOR, "spec", 3)
