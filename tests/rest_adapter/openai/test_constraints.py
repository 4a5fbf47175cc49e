"""The spellings of the form of an answer, and what is refused with the field that the caller wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.chat import translate as chat
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.completions import translate as completions
from rest_adapter.openai.completions.schema import parse_completion


SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
NAMED = {"name": "answer", "strict": True, "description": "d"}


def constraint(**kind: Any) -> sampling_pb.Constraint:
    return sampling_pb.Constraint(**kind)


def of_schema(text: str = TEXT) -> sampling_pb.Constraint:
    return constraint(json_schema=text)


def chat_of(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    return parse_chat(json.loads(json.dumps(body)))[0]


def asked_of(**fields: Any) -> tuple[Any, Any]:
    """The constraint in a chat and in a text completion."""
    raw, _ = parse_completion(json.loads(json.dumps({"model": "m", "prompt": "x"} | fields)))
    spec: Any = chat.to_spec(chat_of(**fields), max_media_bytes=1)
    other: Any
    other = completions.common_spec(raw, max_media_bytes=1)
    one, two = (s.constraint if s.HasField("constraint") else None for s in (spec, other))
    return one, two


FORMS = {
    "OpenAI": ({"type": "json_schema", "json_schema": NAMED | {"schema": SCHEMA}}, of_schema()),
    "schema as text": (
        {"type": "json_schema", "json_schema": NAMED | {"schema": TEXT}},
        of_schema(),
    ),
    "bare schema": ({"type": "json_schema", "json_schema": SCHEMA}, of_schema()),
    "bare schema as text": ({"type": "json_schema", "json_schema": TEXT}, of_schema()),
    "reference": (
        {"type": "json_schema", "json_schema": {"$ref": "#/$defs/a", "$defs": {"a": {}}}},
        of_schema('{"$ref":"#/$defs/a","$defs":{"a":{}}}'),
    ),
    "flat": ({"type": "json_schema", "name": "a", "schema": SCHEMA}, of_schema()),
    "any JSON": ({"type": "json_schema", "json_schema": NAMED | {"schema": {}}}, of_schema("{}")),
    "object": ({"type": "json_object"}, constraint(json_object=True)),
    "object, dumped": ({"type": "json_object", "json_schema": None}, constraint(json_object=True)),
    "object with schema": ({"type": "json_object", "schema": SCHEMA}, of_schema()),
}
FIELDS = {
    "guided_json": (SCHEMA, of_schema()),
    "guided_json as text": (TEXT, of_schema()),
    "guided_regex": ("a+", constraint(regex="a+")),
    "guided_choice": (["a", ""], constraint(choices={"values": ["a", ""]})),
    "guided_grammar": ('start: "a"', constraint(grammar='start: "a"')),
    "regex": ("a+", constraint(regex="a+")),
    "structured_outputs.json": (SCHEMA, of_schema()),
    "structured_outputs.regex": ("a+", constraint(regex="a+")),
    "structured_outputs.choice": (["a"], constraint(choices={"values": ["a"]})),
    "structured_outputs.grammar": ('start: "a"', constraint(grammar='start: "a"')),
    "structured_outputs.json_object": (True, constraint(json_object=True)),
}


def fields_of(path: str, value: object) -> dict[str, Any]:
    name, _, inner = path.partition(" ")[0].partition(".")
    return {name: {inner: value} if inner else value}


@pytest.mark.parametrize("case", FORMS)
def test_response_format(case: str) -> None:
    value, expected = FORMS[case]
    assert asked_of(response_format=value) == (expected, expected)


@pytest.mark.parametrize("case", FIELDS)
def test_other_spellings(case: str) -> None:
    value, expected = FIELDS[case]
    assert asked_of(**fields_of(case, value)) == (expected, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": None},
        {"response_format": "text"},
        {"response_format": {"type": "text", "json_schema": None}},
        {"response_format": {}},
        {"structured_outputs": None},
        {"structured_outputs": {"json": None, "choice": [], "disable_any_whitespace": True}},
        {"structured_outputs": {"json_object": False, "whitespace_pattern": None}},
        {"guided_json": None, "guided_choice": [], "guided_regex": "", "regex": None},
        {"guided_decoding_backend": "auto"},
    ],
)
def test_any_text(fields: dict[str, Any]) -> None:
    assert asked_of(**fields) == (None, None)


REFUSED: dict[str, list[Any]] = {
    "response_format": [
        5,
        [{}],
        "json_object",
        {"name": "x"},
        {"type": "text", "json_schema": {"a": 1}},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"schema": 5}},
        {"type": "json_schema", "json_schema": [1]},
        {"type": "json_object", "schema": [1]},
    ],
    "response_format.type": [{"type": "regex"}, {"type": "structural_tag"}, {"type": ["x"]}],
    "guided_json": [5, [1], True],
    "guided_regex": [5, ["a"]],
    "guided_choice": ["a", [1], {"a": 1}],
    "guided_grammar": [1],
    "regex": [["a"]],
    "ebnf": ["root ::= a"],
    "structural_tag": ["{}"],
    "structured_outputs": ["a", [1]],
    "structured_outputs.json": [{"json": 5}],
    "structured_outputs.json_object": [{"json_object": "yes"}],
    "structured_outputs.choice": [{"choice": "a"}],
    "structured_outputs.structural_tag": [{"structural_tag": "{}"}],
    "structured_outputs.whitespace_pattern": [{"json": SCHEMA, "whitespace_pattern": " *"}],
    "structured_outputs.disable_additional_properties": [
        {"json": SCHEMA, "disable_additional_properties": True}
    ],
    "structured_outputs.surprise": [{"surprise": 1}],
}


@pytest.mark.parametrize(
    ("param", "value"), [(p, v) for p, values in REFUSED.items() for v in values]
)
def test_what_is_refused(param: str, value: object) -> None:
    with pytest.raises(ApiError) as caught:
        asked_of(**{param.partition(".")[0]: value})
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("first", FIELDS)
def test_two_forms_are_refused(first: str) -> None:
    fields = fields_of(first, FIELDS[first][0]) | {"response_format": {"type": "json_object"}}
    with pytest.raises(ApiError) as caught:
        asked_of(**fields)
    assert caught.value.param == first.partition(" ")[0]
    both = {"structured_outputs": {"regex": "a", "choice": ["a"]}}
    with pytest.raises(ApiError, match=r"structured_outputs\.regex"):
        asked_of(**both)


@pytest.mark.parametrize("case", FIELDS)
def test_errors_of_the_service_name_the_field_of_the_caller(case: str) -> None:
    fields = fields_of(case, FIELDS[case][0])
    raw, _ = parse_completion({"model": "m", "prompt": "x"} | fields)
    for paths in (chat.FieldPaths(chat_of(**fields)), completions.FieldPaths(raw)):
        for field in (
            "spec.constraint",
            "spec.constraint.json_schema",
            "spec.constraint.choices.values",
        ):
            assert paths.param_of(field) == case.partition(" ")[0]
    asked = chat.FieldPaths(chat_of(response_format=FORMS["OpenAI"][0]))
    assert asked.param_of("spec.constraint.json_schema") == "response_format"
