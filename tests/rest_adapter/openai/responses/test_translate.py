"""What a field of the JSON becomes in the proto, how a proto path reads in the JSON, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.errors import type_and_code
from rest_adapter.openai.responses.blobs import MAX_BYTES, Unpacker, pack
from rest_adapter.openai.responses.listing import documents_of
from rest_adapter.openai.responses.schema import parse_responses
from rest_adapter.openai.responses.translate import (
    Conversation,
    FieldPaths,
    conversation_of,
    to_spec,
)


LOOK: Any = {"type": "function", "name": "look"}
CALL: Any = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a":1}'}
OUTPUT: Any = {"type": "function_call_output", "call_id": "c1", "output": "seen"}
SCHEMA: Any = {"type": "object", "properties": {"a": {"type": "integer"}}}


def conversation(earlier: Any = (), **fields: Any) -> Conversation:
    body: dict[str, Any] = {"model": "m", "input": "x"} | fields
    asked, unknown = parse_responses(json.loads(json.dumps(body)))
    assert not unknown
    return conversation_of(asked, earlier, {})


def spec_of(**fields: Any) -> chat_pb.ChatCompletionSpec:
    return to_spec(conversation(**fields), max_media_bytes=2**20)


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        spec_of(**fields)
    assert caught.value.status == 400
    return caught.value


def test_text_is_a_message_of_the_user() -> None:
    spec = spec_of()
    assert spec == chat_pb.ChatCompletionSpec(
        model="m",
        messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=[message_pb.Part(text="x")])],
        sampling={},
        stop={},
    )


def test_instructions_come_first() -> None:
    first, second = spec_of(instructions="Be brief.").messages
    assert (first.role, first.parts[0].text) == (message_pb.ROLE_SYSTEM, "Be brief.")
    assert second.role == message_pb.ROLE_USER


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("user", message_pb.ROLE_USER),
        ("system", message_pb.ROLE_SYSTEM),
        ("developer", message_pb.ROLE_SYSTEM),
        ("assistant", message_pb.ROLE_ASSISTANT),
    ],
)
@pytest.mark.parametrize("extra", [{}, {"type": "message"}, {"phase": "commentary", "id": "m"}])
def test_messages(role: str, expected: int, extra: dict[str, Any]) -> None:
    parts = [{"type": "output_text" if role == "assistant" else "input_text", "text": "a"}]
    for content in ("a", parts):
        [message] = spec_of(input=[{"role": role, "content": content} | extra]).messages
        assert (message.role, message.parts[0].text) == (expected, "a")


def test_images() -> None:
    content = [
        {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAEC"},
    ]
    one, two = spec_of(input=[{"role": "user", "content": content}]).messages[0].parts
    assert one.image.uri == "https://example.com/a.png"
    assert one.image.detail == message_pb.IMAGE_DETAIL_LOW
    assert (two.image.data, two.image.mime_type) == (b"\0\1\2", "image/png")


def test_calls_belong_to_the_message_before_them() -> None:
    items = [
        {"role": "user", "content": "q"},
        {"type": "reasoning", "id": "rs", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"role": "assistant", "content": "a"},
        CALL,
        CALL | {"call_id": "c2", "arguments": {"b": 2}},
        OUTPUT,
        OUTPUT | {"call_id": "c2"},
    ]
    _, answer, one, two = spec_of(input=items).messages
    assert (answer.reasoning, answer.parts[0].text) == ("hm", "a")
    assert [(call.id, call.name, call.arguments_json) for call in answer.tool_calls] == [
        ("c1", "look", '{"a":1}'),
        ("c2", "look", '{"b":2}'),
    ]
    assert (one.role, one.tool_call_id, one.parts[0].text) == (message_pb.ROLE_TOOL, "c1", "seen")
    assert two.tool_call_id == "c2"


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_without_arguments(arguments: Any) -> None:
    question = {"role": "user", "content": "q"}
    messages = spec_of(input=[question, CALL | {"arguments": arguments}, OUTPUT]).messages
    assert messages[1].tool_calls[0].arguments_json == "{}"
    assert not messages[1].parts


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"summary": [{"type": "summary_text", "text": "a"}, {"text": "b"}]}, "a\n\nb"),
        ({"summary": [], "content": None, "encrypted_content": pack("reasoning", "ü")}, "ü"),
        ({"summary": [], "encrypted_content": "gAAAAAB-of-another-server"}, ""),
        ({"summary": []}, ""),
    ],
)
def test_reasoning(item: dict[str, Any], text: str) -> None:
    items = [{"type": "reasoning", "id": "rs"} | item, {"role": "assistant", "content": "a"}]
    assert spec_of(input=[{"role": "user", "content": "q"}, *items]).messages[1].reasoning == text


def test_reasoning_before_a_call() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    items = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, thought, CALL]
    _, answer, call = spec_of(input=items).messages
    assert (answer.reasoning, call.reasoning) == ("", "hm")


def test_tools() -> None:
    tool = LOOK | {"description": "d", "parameters": SCHEMA, "strict": True, "async": True}
    spec = spec_of(tools=[tool, {"type": "function", "name": "b"}], parallel_tool_calls=False)
    one, two = spec.tools
    assert (one.name, one.description, one.strict) == ("look", "d", True)
    assert json.loads(one.parameters_json_schema) == SCHEMA
    assert (two.parameters_json_schema, two.HasField("strict")) == ("", False)
    assert spec.tool_choice.parallel is False


def test_tool_choice() -> None:
    modes = {
        "auto": message_pb.TOOL_CHOICE_MODE_AUTO,
        "none": message_pb.TOOL_CHOICE_MODE_NONE,
        "required": message_pb.TOOL_CHOICE_MODE_REQUIRED,
    }
    for name, mode in modes.items():
        assert spec_of(tools=[LOOK], tool_choice=name).tool_choice.mode == mode
    named = {"type": "function", "name": "look"}
    assert spec_of(tools=[LOOK], tool_choice=named).tool_choice.function_name == "look"
    tools = [LOOK, {"type": "function", "name": "b"}]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    spec = spec_of(tools=tools, tool_choice=allowed)
    assert [tool.name for tool in spec.tools] == ["look", "b"]
    assert list(spec.tool_choice.allowed_names) == ["look"]
    assert spec.tool_choice.mode == message_pb.TOOL_CHOICE_MODE_REQUIRED


def test_without_tools_there_is_no_choice() -> None:
    cases: list[dict[str, Any]] = [
        {"tools": []},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": True},
    ]
    for fields in cases:
        assert not spec_of(**fields).HasField("tool_choice")


def test_options() -> None:
    spec = spec_of(
        max_output_tokens=7,
        temperature=0,
        top_k=3,
        seed=1,
        stop=["a"],
        presence_penalty=1,
        top_logprobs=4,
        reasoning={"effort": "low", "summary": "auto"},
        chat_template_kwargs={"enable_thinking": False},
        cache_salt="s",
        mm_processor_kwargs={"max_pixels": 99},
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
    )
    assert (spec.sampling.max_tokens, spec.sampling.temperature, spec.sampling.top_k) == (7, 0, 3)
    assert (spec.sampling.seed, spec.sampling.presence_penalty) == (1, 1)
    assert list(spec.stop.strings) == ["a"]
    assert spec.logprobs.top_logprobs == 4
    assert spec.template.reasoning_effort == "low"
    assert spec.template.enable_thinking is False
    assert spec.cache_salt == "s"
    assert spec.media.max_pixels == 99
    assert json.loads(spec.constraint.json_schema) == SCHEMA
    assert spec_of(text={"format": {"type": "json_object"}}).constraint.json_object


def test_forms_of_other_servers() -> None:
    assert spec_of(structured_outputs={"regex": "a+"}).constraint.regex == "a+"
    assert list(spec_of(guided_choice=["a", "b"]).constraint.choices.values) == ["a", "b"]
    made = conversation(structured_outputs={"regex": "a+"})
    assert FieldPaths(made).param_of("spec.constraint.regex") == "structured_outputs.regex"
    own = {"format": {"type": "json_object"}}
    error = refused(structured_outputs={"regex": "a+"}, text=own)
    assert error.param == "structured_outputs.regex"


@pytest.mark.parametrize(
    "fields",
    [
        {"background": False, "conversation": None, "prompt": None, "context_management": []},
        {"moderation": None, "truncation": "disabled", "text": {"verbosity": "medium"}},
        {"text": {"format": {"type": "text"}}, "tools": [], "include": [], "metadata": {}},
        {"stream_options": {"include_obfuscation": False}, "store": None, "user": "u"},
        {"service_tier": "auto", "prompt_cache_options": {"mode": "implicit"}, "max_tool_calls": 2},
        {"image": {"context_compression": "disabled"}, "access_programs": {"cyber": "standard"}},
        {"reasoning": {"effort": None, "summary": None}, "logprobs": False, "messages": []},
    ],
)
def test_what_asks_for_nothing(fields: dict[str, Any]) -> None:
    assert spec_of(**fields) == spec_of()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}
                ]
            },
            "input[0].content[0].file_id",
        ),
        ({"input": [OUTPUT]}, "input[0].call_id"),
        ({"input": [CALL | {"name": ""}]}, "input[0].name"),
        ({"input": [CALL | {"arguments": 5}]}, "input[0].arguments"),
        ({"input": [CALL, OUTPUT | {"output": None}]}, "input[1].output"),
        ({"input": [{"type": "reasoning", "summary": [{"text": 5}]}]}, "input[0].summary[0].text"),
        ({"input": [{"type": "compaction"}]}, "input[0].encrypted_content"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input[0].id"),
        ({"input": [{"id": "msg_x"}]}, "input[0].id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}]}, "tools[0].function"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [LOOK, LOOK]}, "tools[1].name"),
        ({"tools": [LOOK | {"strict": "yes"}]}, "tools[0].strict"),
        ({"tools": [LOOK | {"parameters": [1]}]}, "tools[0].parameters"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"tools": [LOOK], "tool_choice": {"type": "function", "name": "b"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"grounding": True}, "grounding"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ({"include": ["everything"]}, "include[0]"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata"),
        ({"temperature": "0.5"}, "temperature"),
        ({"image": {"context_compression": "enabled"}}, "image.context_compression"),
        ({"model": ""}, "model"),
    ],
)
def test_refusals(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        spec_of(**fields)
    assert caught.value.param == param
    assert caught.value.status == (404 if param == "model" else 400)


def nested(depth: int) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for _ in range(depth):
        document = {"a": document}
    return document


@pytest.mark.parametrize("value", [nested(300), nested(250), {"a": 2**64}])
def test_what_cannot_be_written_again(value: dict[str, Any]) -> None:
    form = {"type": "json_schema", "name": "n", "schema": value}
    assert refused(tools=[LOOK | {"parameters": value}]).param == "tools[0].parameters"
    assert refused(text={"format": form}).param == "text.format.schema"
    assert refused(input=[CALL | {"arguments": value}]).param == "input[0].arguments"


def test_unsupported_fields_say_what_to_do() -> None:
    error = refused(max_tokens=5)
    assert type_and_code(error)[1] == "unsupported_parameter"
    assert "max_output_tokens" in error.message


def test_unknown_fields_are_named_at_every_depth() -> None:
    body: Any = {
        "model": "m",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "", "new": 1}]},
            CALL | {"x": 1},
        ],
        "tools": [LOOK | {"y": 1}],
        "text": {"z": 1, "format": {"type": "text", "w": 1}},
        "v": 1,
    }
    unknown = parse_responses(body)[1]
    assert sorted(unknown) == sorted(
        ["input[0].content[0].new", "input[1].x", "tools[0].y", "text.z", "text.format.w", "v"]
    )


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("spec.messages[0].parts[0]", "instructions"),
        ("spec.messages[1].parts[0].image", "previous_response_id"),
        ("spec.messages[2].parts[1].image.uri", "input[0].content[1].image_url"),
        ("spec.messages[2].parts[1].image.detail", "input[0].content[1].detail"),
        ("spec.messages[2].parts", "input[0]"),
        ("spec.messages[3].tool_calls[0].arguments_json", "input[1].arguments"),
        ("spec.messages[3].tool_calls[1].name", "input[2].name"),
        ("spec.messages[4].tool_call_id", "input[3].call_id"),
        ("spec.messages[4].parts[0].text", "input[3].output"),
        ("spec.messages[9]", "input"),
        ("spec.messages", "input"),
        ("spec.tools[0].parameters_json_schema", "tools[0].parameters"),
        ("spec.tools[0].name", "tools[0].name"),
        ("spec.tool_choice.function_name", "tool_choice"),
        ("spec.tool_choice.parallel", "parallel_tool_calls"),
        ("spec.constraint.json_schema", "text.format.schema"),
        ("spec.sampling.max_tokens", "max_output_tokens"),
        ("spec.sampling.top_p", "top_p"),
        ("spec.logprobs.top_logprobs", "top_logprobs"),
        ("spec.template.reasoning_effort", "reasoning.effort"),
        ("spec.template.enable_thinking", "chat_template_kwargs.enable_thinking"),
        ("spec.media.max_pixels", "mm_processor_kwargs.max_pixels"),
        ("spec.stop.strings[0]", "stop"),
        ("spec.model", "model"),
        ("spec.", None),
    ],
)
def test_paths_of_fields(field: str, param: str | None) -> None:
    image = {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}
    earlier = [{"type": "message", "id": "m", "role": "user", "content": [image]}]
    made = conversation(
        earlier,
        instructions="i",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "q"}, image]},
            CALL,
            CALL | {"call_id": "c2"},
            OUTPUT,
        ],
        tools=[LOOK],
        chat_template_kwargs={"enable_thinking": True},
        reasoning={"effort": "high"},
        mm_processor_kwargs={"max_pixels": 99},
        text={"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}},
    )
    assert FieldPaths(made).param_of(field) == param


IMAGES: list[dict[str, Any]] = [
    {"image_url": "https://example.com/a.png"},
    {"image_url": "data:image/png;base64,AAEC", "detail": "high"},
    {"image_url": {"url": "https://example.com/a.png", "detail": "low"}},
    {"image_url": "https://example.com/a.png", "min_pixels": 5, "max_pixels": 9, "uuid": "u"},
    {"base64": "AAEC", "mime_type": "image/png"},
    {"source": {"type": "base64", "media_type": "image/webp", "data": "AAEC"}},
    {
        "image_url": "https://example.com/a.png",
        "transformations": {"oversized_image": "error"},
    },
]


@pytest.mark.parametrize(
    "content",
    [
        "text",
        [{"type": "input_text", "text": "a"}, {"type": "text", "text": ""}],
        *([{"type": "input_image"} | image] for image in IMAGES),
        [{"type": "video", "video": ["https://example.com/a.png"], "fps": 3}],
    ],
)
def test_listed_items_are_read_as_they_were_sent(content: Any) -> None:
    items = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "hm"}]},
        CALL,
        OUTPUT | {"output": content},
        {"type": "compaction", "encrypted_content": pack("compaction", "all")},
    ]
    sent = conversation(input=items)
    listed = documents_of(sent.items)
    assert len({document["id"] for document in listed}) == len(items)
    again = conversation(listed, input="next")
    expected = to_spec(sent, max_media_bytes=2**20)
    for part in (part for message in expected.messages for part in message.parts):
        if part.HasField("image") and not part.image.detail:
            part.image.detail = message_pb.IMAGE_DETAIL_AUTO  # which is the same
    expected.messages.add(role=message_pb.ROLE_USER).parts.add(text="next")
    assert to_spec(again, max_media_bytes=2**20).messages == expected.messages


def test_blobs() -> None:
    blob = pack("reasoning", "über\n猫")
    assert Unpacker().unpack("reasoning", blob) == "über\n猫"
    assert Unpacker().unpack("compaction", blob) is None
    for broken in ("", "x", blob[:-4], blob[:20], "qwenvl1.!!!!"):
        assert Unpacker().unpack("reasoning", broken) is None


@pytest.mark.parametrize("kind", ["reasoning", "compaction", "neither"])
@pytest.mark.parametrize(("count", "size"), [(1, 2**24), (3, MAX_BYTES // 2), (500, 2**20)])
def test_blobs_are_bounded_together(kind: str, count: int, size: int) -> None:
    """A few kilobytes unpack to gigabytes."""
    unpacker, blob = Unpacker(), pack(kind, "a" * size)
    room = MAX_BYTES // (size + 100)
    for _ in range(room):
        assert unpacker.unpack("reasoning", blob) == ("a" * size if kind == "reasoning" else None)
    assert room < count
    with pytest.raises(ApiError, match="more than 2 MiB") as caught:
        unpacker.unpack("reasoning", blob)
    assert caught.value.status == 413


@pytest.mark.parametrize("where", ["input", "earlier", "found"])
def test_blobs_of_a_conversation_are_bounded_together(where: str) -> None:
    blob = pack("reasoning", "a" * (MAX_BYTES // 2))
    thoughts: list[Any] = [
        {"type": "reasoning", "id": f"rs_{number}", "summary": [], "encrypted_content": blob}
        for number in range(3)
    ]
    question = {"role": "user", "content": "q"}
    own: list[Any] = thoughts if where == "input" else []
    if where == "found":
        own = [{"type": "item_reference", "id": item["id"]} for item in thoughts]
    body = {"model": "demo", "input": [question, *own]}
    earlier = thoughts if where == "earlier" else []
    found = {item["id"]: item for item in thoughts} if where == "found" else {}
    with pytest.raises(ApiError, match="more than 2 MiB"):
        conversation_of(parse_responses(body)[0], earlier, found)
