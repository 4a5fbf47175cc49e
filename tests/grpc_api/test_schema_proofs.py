"""Proofs about schemas: what is proved holds, what callers write is proved, and no schema takes long."""

from __future__ import annotations

import json
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
import pytest

from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api import schema_proofs
from inference_service.grpc_api.json_schema import _inner_schemas, checked_schema
from inference_service.grpc_api.request_tools import tools_of
from inference_service.grpc_api.schema_proofs import Proofs
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.support.line_counts import lines_of
from tests.support.unions import DISJOINT, tagged


FIELD = "spec.constraint.json_schema"
PROOFS = "inference_service.grpc_api.schema_proofs"


OVERLAPPING: dict[str, dict[str, Any]] = {
    "the same": {"oneOf": [{"type": "string"}, {"type": "string"}]},
    "integers and numbers": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "equal numbers": {"oneOf": [{"const": 1}, {"const": 1.0}]},
    "ranges with a common end": {
        "oneOf": [{"type": "number", "maximum": 1}, {"type": "number", "minimum": 1}],
    },
    "ranges of no type": {"oneOf": [{"maximum": 1}, {"minimum": 2}]},  # of any text
    "tags that are not required": {
        "oneOf": [tagged(kind) | {"required": []} for kind in "ab"],
    },
    "tags of no type": {
        "oneOf": [{"properties": {"k": {"const": n}}, "required": ["k"]} for n in "ab"],
    },
    "nothing there": {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/C"}], "$defs": {}},
    "other documents' types": {"oneOf": [{"type": "File"}, {"type": "string"}]},
}


@pytest.mark.parametrize("case", DISJOINT)
def test_alternatives_that_exclude_each_other_are_allowed(case: str) -> None:
    for schema in (
        DISJOINT[case],
        {"type": "object", "properties": {"u": {"oneOf": DISJOINT[case]["oneOf"]}}}
        | {"$defs": DISJOINT[case].get("$defs", {})},
        DISJOINT[case] | {"anyOf": [{}], "allOf": [{}]},
    ):
        checked = checked_schema(json.dumps(schema), FIELD)
        assert "oneOf" not in checked
        assert "anyOf" in checked


@pytest.mark.parametrize("case", OVERLAPPING)
def test_alternatives_that_may_overlap_stay(case: str) -> None:
    assert "oneOf" in checked_schema(json.dumps(OVERLAPPING[case]), FIELD)


def test_a_reference_through_alternatives_still_leads_there() -> None:
    either = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
    schema = {
        "type": "object",
        "properties": {"a": either, "b": {"$ref": "#/properties/a/oneOf/0"}},
    }
    checked = json.loads(checked_schema(json.dumps(schema), FIELD))
    assert checked == schema


VALUES = [
    *(None, True, False, 0, 1, 2, 1.0, 1.5, -1, "", "a", "bb", [], [1], ["a", "a"], {}),
    *({"k": "a"}, {"k": 1}, {"k": "b", "l": 1}, {"k": {"k": "a"}}, {"l": [1]}, {"k": None}),
]
KEYS = st.sampled_from(["k", "l"])
LEAVES = st.one_of(
    st.fixed_dictionaries({"const": st.sampled_from(VALUES)}),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(VALUES), min_size=1, max_size=3)}),
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(
                [*("integer", "number", "string", "null", "object", "array"), ["string", "null"]]
            ),
            **dict.fromkeys(
                ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
                st.sampled_from([0, 1, 1.5, 2]),
            ),
            **dict.fromkeys(
                ["minLength", "maxItems", "maxLength", "minItems", "minProperties"],
                st.sampled_from([0, 1, 2]),
            ),
        },
    ),
    st.sampled_from([True, False, {"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}, {"$ref": "#"}]),
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"properties": st.dictionaries(KEYS, inner, max_size=2)},
            optional={
                "type": st.just("object"),
                "required": st.lists(KEYS, max_size=2, unique=True),
                "additionalProperties": inner,
            },
        ),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "minItems": st.just(1)}),
        st.dictionaries(
            st.sampled_from(["allOf", "anyOf", "oneOf"]),
            st.lists(inner, min_size=1, max_size=3),
            max_size=2,
        ),
    ),
    max_leaves=6,
)


def matches(value: object, schema: Any, root: Any) -> bool:
    """Whether a value matches a schema of a document; one about which the schema has no end does not."""
    try:
        return jsonschema.Draft202012Validator(root).evolve(schema=schema).is_valid(value)
    except RecursionError:
        return False


DOCUMENTS = given(st.lists(SCHEMAS, min_size=2, max_size=3), SCHEMAS, SCHEMAS)


@settings(deadline=None, max_examples=25)
@DOCUMENTS
def test_what_is_proved_holds(alternatives: list[Any], first: Any, second: Any) -> None:
    check_proofs(alternatives, first, second)


@pytest.mark.full
@settings(deadline=None, max_examples=300)
@DOCUMENTS
def test_what_is_proved_holds_of_many(alternatives: list[Any], first: Any, second: Any) -> None:
    check_proofs(alternatives, first, second)


def check_proofs(alternatives: list[Any], first: Any, second: Any) -> None:
    root = {"$defs": {"A": first, "B": second}, "allOf": [{"type": "object"}]}
    if Proofs(root).are_disjoint(alternatives):
        for value in VALUES:
            assert sum(matches(value, one, root) for one in alternatives) < 2
    whole = root | {"allOf": alternatives[:1]}
    if Proofs(whole).is_endless(whole):
        assert not any(matches(value, whole, whole) for value in VALUES)


NODE = {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}
ENDLESS: dict[str, dict[str, Any]] = {
    "itself": {"$ref": "#"},
    "a circle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#"}}},
    "in all": {"allOf": [{"$ref": "#"}]},
    "every alternative": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
    "a required property": {
        "type": "object",
        "properties": {"a": {"$ref": "#"}, "b": {}},
        "required": ["b", "a"],
    },
    "items": {"type": "array", "items": {"$ref": "#"}, "minItems": 2},
    "first items": {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
    "a definition": {"$ref": "#/$defs/N", "$defs": {"N": NODE}},
}
ENDING: dict[str, dict[str, Any]] = {
    "an alternative": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    "a property": {"type": "object", "properties": {"a": {"$ref": "#"}}},
    "no items": {"type": "array", "items": {"$ref": "#"}},
    "no type": {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "a definition that is not needed": {"type": "object", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "twice the same": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/s"}, "b": {"$ref": "#/$defs/s"}},
        "required": ["a", "b"],
        "$defs": {"s": {"type": "string"}},
    },
}


@pytest.mark.parametrize("case", ENDLESS)
def test_schemas_without_end_are_refused(case: str) -> None:
    with pytest.raises(InvalidArgumentError, match="refers to itself without end") as caught:
        checked_schema(json.dumps(ENDLESS[case]), FIELD)
    assert caught.value.field == FIELD


@pytest.mark.parametrize("case", ENDING)
def test_schemas_that_may_end_are_not(case: str) -> None:
    checked_schema(json.dumps(ENDING[case]), FIELD)


def chain(count: int, link: Any) -> dict[str, Any]:
    return {f"d{n}": link(f"#/$defs/d{n + 1}") for n in range(count)}


WIDE = {"type": "object", "required": [f"p{n}" for n in range(2000)]}
HOSTILE: dict[str, dict[str, Any]] = {
    "many alternatives": {"oneOf": [{"minLength": n} for n in range(3000)]},
    "many unions": {
        "allOf": [{"oneOf": [{"$ref": "#/$defs/W"}] * 2}] * 700,
        "$defs": {"W": WIDE},
    },
    "wide variants": {"oneOf": [{"$ref": "#/$defs/W"}] * 500, "$defs": {"W": WIDE}},
    "wide values": {
        "allOf": [{"oneOf": [{"$ref": "#/$defs/E"}, {"type": "number"}]}] * 800,
        "$defs": {"E": {"enum": list(range(3000))}},
    },
    "a long value": {
        "oneOf": [{"allOf": [{"const": n}, {"$ref": "#/$defs/b"}]} for n in range(40)],
        "$defs": {"b": {"const": [list(range(8000))]}},
    },
    "a long chain": {
        "oneOf": [{"$ref": "#/$defs/d0"}] * 3,
        "$defs": chain(850, lambda ref: {"anyOf": [{"$ref": ref}, {"$ref": ref}]}),
    },
    "a long chain of properties": {
        "$ref": "#/$defs/d0",
        "$defs": chain(
            600,
            lambda ref: {"type": "object", "properties": {"a": {"$ref": ref}}, "required": ["a"]},
        ),
    },
    "alternatives of alternatives": {
        "oneOf": [{"$ref": "#/$defs/d0"}, {"$ref": "#/$defs/d1"}],
        "$defs": chain(300, lambda ref: {"anyOf": [{"$ref": ref}, {"$ref": "#/$defs/d0"}]}),
    },
}


RANGES = [{"type": "integer", "minimum": 2 * n, "maximum": 2 * n} for n in range(92)]
COSTLY: dict[str, dict[str, Any]] = {
    "long references": {
        "oneOf": [{**one, "$ref": "#/$defs/a"} for one in RANGES],
        "$defs": {"a": {"$ref": "#/" + "%41" * 700}},
    },
    "long lists of types": {
        "oneOf": [{**one, "$ref": "#/$defs/a"} for one in RANGES],
        "$defs": {"a": {"type": ["integer"] * 4000}},
    },
    "long lists of what is no schema": {
        "oneOf": [{**one, "$ref": "#/$defs/a"} for one in RANGES],
        "$defs": {"a": {"allOf": [0] * 5000}},
    },
    "alternatives of which each has nothing to say": {
        "oneOf": [{"$ref": "#/$defs/a"}] * 2,
        "$defs": {"a": {"allOf": [{"anyOf": [{}]}] * 160}},
    },
    "many alternatives of many schemas": {
        "oneOf": [{"$ref": "#/$defs/a"}] * 1000,
        "$defs": {"a": {"type": "object", "allOf": [{}] * 1000}},
    },
    "many names of many schemas": {
        "oneOf": [{"$ref": "#/$defs/a"}] * 12,
        "$defs": {
            "a": {
                "type": "object",
                "required": [f"p{n}" for n in range(1400)],
                "allOf": [{"patternProperties": {"a": {}}}] * 1000,
            }
        },
    },
    "long lists of what is no schema before one without end": {
        "anyOf": [{"$ref": "#/$defs/b"}] * 200,
        "$defs": {
            "a": {"allOf": [*[0] * 4900, {"$ref": "#"}]},
            "b": {"anyOf": [{"$ref": "#/$defs/a"}] * 200},
        },
    },
}


@pytest.mark.parametrize("case", COSTLY)
def test_the_work_of_a_schema_is_bounded(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(COSTLY[case])
    unquoted: list[str] = []

    def unquote(path: str) -> str:
        unquoted.append(path)
        return path

    monkeypatch.setattr(schema_proofs, "unquote", unquote)
    assert lines_of(lambda: checked_schema(text, FIELD)) < 100 * schema_proofs.MAX_STEPS
    assert sum(map(len, unquoted)) <= len(text)


def test_the_schemas_of_a_request_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of tools, each of whose schemas takes all steps, take not much more than ten of them."""
    monkeypatch.setattr(schema_proofs, "MAX_STEPS", 3_000)
    monkeypatch.setattr(schema_proofs, "MAX_SHARED_STEPS", 30_000)
    costly = json.dumps(COSTLY["alternatives of which each has nothing to say"])
    tools = [message_pb.Tool(name=f"t{n}", parameters_json_schema=costly) for n in range(40)]
    of_ten = 10 * lines_of(lambda: checked_schema(costly, FIELD), PROOFS)
    assert of_ten / 2 < lines_of(lambda: tools_of(tools), PROOFS) < 2 * of_ten


def test_what_other_tools_need_keeps_no_proof_from_an_honest_one() -> None:
    schemas = [DISJOINT[case] for case in DISJOINT] * 2 + [{"oneOf": RANGES}]
    tools = [
        message_pb.Tool(name=f"t{n}", parameters_json_schema=json.dumps(one))
        for n, one in enumerate(schemas)
    ]
    assert not any("oneOf" in tool.enforced for tool in tools_of(tools))


def test_paths_below_a_long_name_stay_short() -> None:
    inner: dict[str, Any] = {f"p{n}": {"type": "null"} for n in range(500)}
    found = list(_inner_schemas({"properties": inner}, f"properties.{'n' * 30_000}"))
    assert len(found) >= 500
    assert max(len(path) for _, path in found) < 200
    with pytest.raises(InvalidArgumentError) as caught:
        checked_schema(json.dumps({"properties": {"n" * 30_000: {"pattern": "a{2000}"}}}), FIELD)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("case", HOSTILE)
def test_no_schema_takes_long(case: str) -> None:
    text = json.dumps(HOSTILE[case])
    assert len(text) < 64 * 2**10
    begin = time.thread_time()
    checked_schema(text, FIELD)
    assert time.thread_time() - begin < 5  # without bounds, 19 s
