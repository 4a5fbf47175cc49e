"""What the service receives from /v1/decisions, and what is refused, with `param` as the caller wrote the field."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.openai.chat.test_refusals import error_of


PNG = b"\x89PNG\r\n\x1a\n not really"
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
CALL = {"type": "function_call", "call_id": "c1", "name": "scale", "arguments": '{"unit": "kg"}'}
PREDICATE = {"type": "predicate", "instructions": "It is torn."}


def received(adapter: Adapter, **fields: Any) -> decision_pb.DecisionSpec:
    response = adapter.decide(**fields)
    assert response.status_code == 200, response.text
    return adapter.seen.decision_specs[-1]


def texts_of(message: message_pb.Message) -> list[str]:
    return [part.text for part in message.parts]


def test_a_text_is_a_message(adapter: Adapter) -> None:
    spec = received(
        adapter, prompt_cache_key="k", safety_identifier="s", prompt_format=1, rotations=3
    )
    [message] = spec.messages
    assert (message.role, texts_of(message)) == (message_pb.ROLE_USER, ["Parcel 7"])
    assert (spec.cache_salt, spec.prompt_format, spec.diagnostics) == ("k", 1, False)
    assert spec.rotations == 3
    assert spec.request_id
    [question] = spec.questions
    assert not question.HasField("name")
    assert question.HasField("predicate")


def test_pixel_budgets(adapter: Adapter) -> None:
    options = {"max_pixels": 4096, "oversized_image": "error"}
    spec = received(adapter, mm_processor_kwargs=options)
    assert spec.media.max_pixels == 4096
    assert spec.media.oversized == message_pb.OVERSIZED_IMAGE_REJECT


def test_messages_and_parts(adapter: Adapter) -> None:
    content = [
        {"type": "input_image", "image_url": URI, "detail": "low"},
        {"type": "input_text", "text": "Parcel 7", "prompt_cache_breakpoint": {"mode": "explicit"}},
        {"type": "input_json", "data": {"weight": 2.5, "tags": ["a", None]}},
    ]
    said = {
        "role": "assistant",
        "phase": "final_answer",
        "content": [
            {"type": "output_text", "text": "Fine."},
            {"type": "refusal", "refusal": "No."},
        ],
    }
    spec = received(
        adapter,
        input=[
            {"role": "developer", "content": "Be strict."},
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "S"}]},
            said,
            {"role": "user", "content": content},
        ],
        prompt_cache_options={"mode": "explicit", "ttl": "30m"},
    )
    roles = [message.role for message in spec.messages]
    assert roles == [
        message_pb.ROLE_SYSTEM,
        message_pb.ROLE_SYSTEM,
        message_pb.ROLE_ASSISTANT,
        message_pb.ROLE_USER,
    ]
    image, text, data = spec.messages[3].parts
    assert image.image.data == PNG
    assert image.image.detail == message_pb.IMAGE_DETAIL_LOW
    assert text.text == "Parcel 7"
    assert data.text == '{"weight":2.5,"tags":["a",null]}'
    assert [part.WhichOneof("kind") for part in spec.messages[2].parts] == ["text", "refusal"]


def test_calls_and_results(adapter: Adapter) -> None:
    output = [{"type": "input_text", "text": "2.5"}, {"type": "input_image", "image_url": URI}]
    spec = received(
        adapter,
        input=[
            CALL,
            {"type": "function_call_output", "call_id": "c1", "output": output},
            {"type": "custom_tool_call", "call_id": "c1", "name": "note", "input": "x = 1"},
            {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
        ],
    )
    assert [message.role for message in spec.messages] == [
        message_pb.ROLE_ASSISTANT,
        message_pb.ROLE_USER,
    ] * 2
    assert texts_of(spec.messages[0]) == ['Call of scale: {"unit": "kg"}']
    assert texts_of(spec.messages[1]) == ["Result of scale:\n", "2.5", ""]
    assert spec.messages[1].parts[2].image.data == PNG
    assert texts_of(spec.messages[2]) == ["Call of note: x = 1"]
    assert texts_of(spec.messages[3]) == ["Result of note:\n", "ok"]


def test_questions(adapter: Adapter) -> None:
    spec = received(
        adapter,
        questions=[
            {
                "type": "choice",
                "name": "same",
                "instructions": [
                    {"type": "input_text", "text": "Is this it?"},
                    {"type": "input_image", "image_url": URI},
                    {"type": "input_json", "data": [{"a": 1}]},
                ],
                "choices": [{"value": True}, {"value": "true", "description": "as text"}],
            },
            {"type": "score", "instructions": "x", "levels": [{"label": "a", "description": "d"}]},
        ],
    )
    choice, score = spec.questions
    assert choice.name == "same"
    assert [part.WhichOneof("kind") for part in choice.instructions] == ["text", "image", "text"]
    flag, text = choice.choice.options
    assert (flag.WhichOneof("value"), flag.flag) == ("flag", True)
    assert (text.text, text.description) == ("true", "as text")
    [level] = score.score.levels
    assert (level.text, level.description) == ("a", "d")


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def json_part(data: object) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [{"type": "input_json", "data": data}]}]}


@pytest.mark.parametrize(
    "data", [nested(32), [{"a": 1}] * 3333, {"a": "x" * (256 * 2**10 - 8)}, [], {}]
)
def test_json_within_the_limits(adapter: Adapter, data: object) -> None:
    assert adapter.decide(**json_part(data)).status_code == 200


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (nested(33), "32 levels"),
        ([{"a": 1}] * 5000, "10000 values"),
        ({"a": "x" * (256 * 2**10 - 7)}, "262144 bytes"),
        ("x", "an object or a list of objects"),
        ([{}, 1], "an object or a list of objects"),
    ],
)
def test_json_beyond_the_limits(adapter: Adapter, data: object, words: str) -> None:
    error = error_of(adapter.decide(**json_part(data)), 400)
    assert error["param"] == "input[0].content[0].data"
    assert words in error["message"]


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "x"}, fields]}


def question(**fields: Any) -> dict[str, Any]:
    return {"questions": [PREDICATE, fields]}


def choice(*choices: Any) -> dict[str, Any]:
    return question(type="choice", instructions="x", choices=list(choices))


OUTPUT = "function_call_output"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"input": None}, "input"),
    "empty input": ({"input": ""}, "input"),
    "no items": ({"input": []}, "input"),
    "number as input": ({"input": 5}, "input"),
    "text as item": ({"input": ["x"]}, "input[0]"),
    "unknown item": (item(type="reasoning"), "input[1].type"),
    "item without type": (item(content="x"), "input[1].type"),
    "unknown role": (item(role="tool", content="x"), "input[1].role"),
    "no content": (item(role="user"), "input[1].content"),
    "unknown part": (item(role="user", content=[{"type": "box"}]), "input[1].content[0].type"),
    "file id": (
        item(role="user", content=[{"type": "input_image", "file_id": "f"}]),
        "input[1].content[0].file_id",
    ),
    "broken image": (
        item(role="user", content=[{"type": "input_image", "image_url": "data:,"}]),
        "input[1].content[0].image_url",
    ),
    "no data": (item(role="user", content=[{"type": "input_json"}]), "input[1].content[0].data"),
    "unmatched result": (item(type=OUTPUT, call_id="c1", output="x"), "input[1].call_id"),
    "result of another kind": (
        {"input": [CALL, {"type": "custom_tool_call_output", "call_id": "c1", "output": "x"}]},
        "input[1].call_id",
    ),
    "result without output": (
        {"input": [CALL, {"type": OUTPUT, "call_id": "c1"}]},
        "input[1].output",
    ),
    "call without arguments": (
        item(type="function_call", call_id="c", name="f"),
        "input[1].arguments",
    ),
    "call id": (item(type="function_call", call_id=1, name="f", arguments=""), "input[1].call_id"),
    "no questions": ({"questions": None}, "questions"),
    "object as questions": ({"questions": {"a": PREDICATE}}, "questions"),
    "text as question": ({"questions": ["x"]}, "questions[0]"),
    "no type": (question(instructions="x"), "questions[1].type"),
    "unknown type": (question(type="yes_no", instructions="x"), "questions[1].type"),
    "no instructions": (question(type="predicate"), "questions[1].instructions"),
    "number as instructions": (
        question(type="predicate", instructions=1),
        "questions[1].instructions",
    ),
    "number as name": (question(type="predicate", instructions="x", name=1), "questions[1].name"),
    "no choices": (question(type="choice", instructions="x"), "questions[1].choices"),
    "text as choice": (choice("a", "b"), "questions[1].choices[0]"),
    "number as value": (choice({"value": "a"}, {"value": 1}), "questions[1].choices[1].value"),
    "no value": (choice({"value": "a"}, {"description": "b"}), "questions[1].choices[1].value"),
    "number as description": (
        choice({"value": "a", "description": 1}),
        "questions[1].choices[0].description",
    ),
    "truth as level": (
        question(type="score", instructions="x", levels=[{"label": True}]),
        "questions[1].levels[0].label",
    ),
    "long safety identifier": ({"safety_identifier": "s" * 129}, "safety_identifier"),
    "text as format": ({"prompt_format": "1"}, "prompt_format"),
    "long name of a call": (
        {"input": [{"type": "function_call", "call_id": "c", "name": "n" * 257, "arguments": ""}]},
        "input[0].name",
    ),
}

UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "stream": ({"stream": True}, "stream"),
    "temperature": ({"temperature": 0.5}, "temperature"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "messages": ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    "state of System One": ({"state": "x"}, "state"),
    "SGLang's id": (question(id="q1", type="predicate", instructions="x"), "questions[1].id"),
    "SGLang's question": (question(id="q1", question="x", type="yes_no"), "questions[1].id"),
    "choices of a predicate": (
        question(type="predicate", instructions="x", choices=[{"value": "a"}]),
        "questions[1].choices",
    ),
    "levels of a choice": (
        question(type="choice", instructions="x", choices=[], levels=[{"label": "a"}]),
        "questions[1].levels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(adapter: Adapter, name: str) -> None:
    fields, param = REFUSED[name]
    error = error_of(adapter.decide(**fields), 400)
    assert error["param"] == param
    assert param.rpartition(".")[2].partition("[")[0] in error["message"]
    assert not adapter.seen.calls


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(adapter: Adapter, name: str) -> None:
    fields, param = UNSUPPORTED[name]
    error = error_of(adapter.decide(**fields), 400)
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert not adapter.seen.calls


def test_neutral_values_are_no_request(adapter: Adapter) -> None:
    received(adapter, stream=False, temperature=1, tools=[], tool_choice="auto", user="u", n=1)


def test_the_empty_name_is_no_model(adapter: Adapter) -> None:
    assert error_of(adapter.decide(model=""), 404)["param"] == "model"


MANY = [
    PREDICATE,
    {
        "type": "choice",
        "instructions": [
            {"type": "input_image", "image_url": URI},
            {"type": "input_text", "text": "x"},
        ],
        "choices": [{"value": "a"}, {"value": "b"}],
    },
    {"type": "score", "instructions": "x", "levels": [{"label": "a"}]},
]
FIELDS = {
    "spec.questions": "questions",
    "spec.questions[0]": "questions[0]",
    "spec.questions[0].instructions": "questions[0].instructions",
    "spec.questions[1].instructions[0].image": "questions[1].instructions[0].image_url",
    "spec.questions[1].choice.options": "questions[1].choices",
    "spec.questions[1].choice.options[1]": "questions[1].choices[1]",
    "spec.questions[1].choice.options[0].text": "questions[1].choices[0].value",
    "spec.questions[1].choice.options[1].flag": "questions[1].choices[1].value",
    "spec.questions[2].score.levels": "questions[2].levels",
    "spec.questions[2].score.levels[0].text": "questions[2].levels[0].label",
    "spec.questions[9]": "questions",
    "spec.messages": "input",
    "spec.messages[0]": "input[0]",
    "spec.messages[0].parts[0].image": "input[0].content[0].image_url",
    "spec.messages[0].parts[0].image.max_pixels": "max_pixels",
    "spec.messages[1].parts[0]": "input[1].content",
    "spec.messages[9]": "input",
    "spec.model": "model",
    "spec.cache_salt": "prompt_cache_key",
    "spec.media.max_pixels": "max_pixels",
    "spec.media.oversized": "mm_processor_kwargs.oversized_image",
    "spec.prompt_format": "prompt_format",
}


@pytest.mark.parametrize("field", FIELDS)
def test_params_of_the_services_refusals(adapter: Adapter, field: str) -> None:
    evidence = [
        {"role": "user", "content": [{"type": "input_image", "image_url": URI}]},
        {"role": "user", "content": f"fail-at {field}"},
    ]
    error = error_of(adapter.decide(input=evidence, questions=MANY, max_pixels=9), 400)
    assert error["param"] == FIELDS[field]
