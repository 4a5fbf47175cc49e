"""Constraints of requests: what is passed on, and what is refused with the path of its field."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import grpc.aio
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.engine_protocol.messages import EngineFailure
from inference_service.errors import ConstraintFailedError, InvalidArgumentError
from inference_service.grpc_api import constraints, request_tools
from inference_service.grpc_api.json_schema import check_repeats, checked_schema
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.grpc_api.asking import refusal, spec_of
from tests.grpc_api.conftest import Service
from tests.support.json_schemas import schemas


FIELD = "spec.constraint.json_schema"


def asked(**kind: Any) -> sampling_pb.Constraint:
    return sampling_pb.Constraint(**kind)


def schema(**keywords: Any) -> sampling_pb.Constraint:
    return asked(json_schema=json.dumps(keywords))


def choices(*values: str) -> sampling_pb.Constraint:
    return asked(choices=sampling_pb.Choices(values=values))


def nested(levels: int) -> dict[str, Any]:
    return {} if levels == 1 else {"items": nested(levels - 1)}


TAKEN = {
    "object": (asked(json_object=True), Constraint(kind=ConstraintKind.JSON_OBJECT)),
    "schema": (
        schema(type="array", uniqueItems=False),
        Constraint(kind=ConstraintKind.JSON_SCHEMA, text='{"type": "array"}'),
    ),
    "order": (
        schema(properties={"b": {"type": "null"}, "a": {"type": "null"}}),
        Constraint(
            kind=ConstraintKind.JSON_SCHEMA,
            text='{"properties": {"b": {"type": "null"}, "a": {"type": "null"}}}',
        ),
    ),
    "regex": (asked(regex="a{1,1000}"), Constraint(kind=ConstraintKind.REGEX, text="a{1,1000}")),
    "choices": (choices("a", ""), Constraint(kind=ConstraintKind.CHOICES, values=("a", ""))),
    "grammar": (
        asked(grammar='start: "a"'),
        Constraint(kind=ConstraintKind.LARK, text='start: "a"'),
    ),
}
REFUSED = {
    "no kind": (asked(), "spec.constraint", "no kind"),
    "no object": (asked(json_object=False), "spec.constraint", "json_object is false"),
    "no JSON": (asked(json_schema="{'type': 1}"), FIELD, "not valid JSON"),
    "half a pair": (asked(json_schema='{"const": "\\ud800"}'), FIELD, "cannot be used"),
    "half a key": (
        asked(json_schema='{"properties": {"\\ud800": {"not": 1}}}'),
        FIELD,
        "ud800.not",
    ),
    "infinite": (asked(json_schema='{"minimum": 1e999}'), FIELD, "not valid JSON"),
    "NaN": (asked(json_schema='{"minimum": NaN}'), FIELD, "not valid JSON"),
    "not an object": (asked(json_schema="true"), FIELD, "JSON text of an object"),
    "endless": (asked(json_schema='{"a":' * 12_000), FIELD, "not valid JSON"),
    "large": (schema(description="x" * 2**16), FIELD, "65536"),
    "deep": (schema(**nested(66)), FIELD, "64 levels"),
    "long enum": (schema(enum=list(range(5001))), FIELD, "5001 entries in 'enum'"),
    "long anyOf": (schema(anyOf=[{}] * 5001), FIELD, "5001 entries in 'anyOf'"),
    "long integer": (schema(const=2**53), FIELD, "'const'"),
    # This one crashes the compiler of llguidance 1.9.1.
    "smallest integer": (schema(items={"enum": ["a", {"b": [-(2**63)]}]}), FIELD, "'items.enum'"),
    "long number": (schema(minimum=123456789.12345679), FIELD, "'minimum'"),
    "repeats": (schema(items={"pattern": "a{1001}"}), FIELD, "1001 in 'items.pattern'"),
    "names": (schema(patternProperties={"a{2,1001}": {}}), FIELD, "'patternProperties'"),
    "elsewhere": (schema(anyOf=[{"$ref": "http://x/y"}]), FIELD, "'anyOf[0].$ref'"),
    "format": (schema(items={"format": "regex"}), FIELD, "'items.format' 'regex'"),
    "unique": (schema(uniqueItems=True), FIELD, "'uniqueItems'"),
    "overlap": (schema(oneOf=[{}, {}]), FIELD, "oneOf"),
    "long regex": (asked(regex="a" * 4097), "spec.constraint.regex", "4097 bytes"),
    "regex repeats": (asked(regex="(?:a?){2000}a{2000}"), "spec.constraint.regex", "2000"),
    "bad regex": (asked(regex="(a"), "spec.constraint.regex", "unclosed group"),
    "no choices": (choices(), "spec.constraint.choices.values", "at least one"),
    "many choices": (choices(*["a"] * 5001), "spec.constraint.choices.values", "5001"),
    "long choices": (choices("a" * 2**16, "b"), "spec.constraint.choices.values", "65537"),
    "no grammar": (asked(grammar=" \n"), "spec.constraint.grammar", "empty"),
    "long grammar": (asked(grammar="a" * 65537), "spec.constraint.grammar", "65537"),
    "grammar repeats": (asked(grammar="start: /a/{2000}"), "spec.constraint.grammar", "2000"),
    "bad grammar": (asked(grammar="start: b"), "spec.constraint.grammar", "unknown name"),
}
UNSUPPORTED = [
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies"),
    *("contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties"),
    *("propertyNames", "$dynamicRef", "$recursiveRef"),
]


@pytest.mark.parametrize("case", TAKEN)
async def test_what_reaches_the_engine(service: Service, case: str) -> None:
    constraint, expected = TAKEN[case]
    await service.create(spec_of("x", constraint=constraint))
    raw = completion_pb.CompletionSpec(text="x", constraint=constraint)
    await service.completions.CreateCompletion(completion_pb.CreateCompletionRequest(spec=raw))
    assert [request.constraint for request in service.engine.requests] == [expected, expected]
    assert {request.constraint_after for request in service.engine.requests} == {None}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_refused(service: Service, case: str) -> None:
    constraint, field, words = REFUSED[case]
    got = await refusal(service.create(spec_of("x", constraint=constraint)))
    assert (got.info.reason, got.field) == ("INVALID_ARGUMENT", field)
    assert words in got.message
    raw = completion_pb.CompletionSpec(text="x", constraint=constraint)
    call = service.completions.CreateCompletion(completion_pb.CreateCompletionRequest(spec=raw))
    assert (await refusal(call)).field == field
    assert not service.engine.requests


async def test_small_schemas_are_checked_in_threads(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema of a few bytes may take long, in which the event loop answers the others."""
    threads: list[str] = []

    def checked(text: str, field: str) -> str:
        threads.append(threading.current_thread().name)
        return checked_schema(text, field)

    monkeypatch.setattr(constraints, "checked_schema", checked)
    monkeypatch.setattr(request_tools, "checked_schema", checked)
    own = schema(type="object")
    await service.create(spec_of("x", constraint=own))
    raw = completion_pb.CompletionSpec(text="x", constraint=own)
    await service.completions.CreateCompletion(completion_pb.CreateCompletionRequest(spec=raw))
    tool = message_pb.Tool(name="f", parameters_json_schema='{"type": "object"}')
    with contextlib.suppress(grpc.aio.AioRpcError):  # a model without tools refuses them later
        await service.create(spec_of("x", tools=[tool]))
    assert len(threads) == 3
    assert all(name.startswith("messages") for name in threads)


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_a_keyword_that_cannot_be_enforced_is_named_with_its_path(keyword: str) -> None:
    for place, path in (
        (lambda inner: inner, keyword),
        (lambda inner: {"properties": {"a.b": inner}}, f"properties.a.b.{keyword}"),
        (lambda inner: {"$defs": {"d": {"anyOf": [{}, inner]}}}, f"$defs.d.anyOf[1].{keyword}"),
        (lambda inner: {"additionalProperties": inner}, f"additionalProperties.{keyword}"),
        (lambda inner: {"prefixItems": [inner]}, f"prefixItems[0].{keyword}"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            checked_schema(json.dumps(place({keyword: {}})), FIELD)
        assert caught.value.field == FIELD
        assert f"'{path}'" in caught.value.message


@pytest.mark.parametrize("keyword", UNSUPPORTED)
def test_names_and_values_are_no_keywords(keyword: str) -> None:
    harmless = {
        "properties": {keyword: {"enum": [{keyword: 1}], "default": {keyword: 1}}},
        "const": {"a": {keyword: 1}},
        "required": [keyword],
        "examples": [{keyword: 1}],
        "$defs": {keyword: {"format": "date"}},
    }
    assert json.loads(checked_schema(json.dumps(harmless), FIELD)) == harmless


@pytest.mark.parametrize(
    "pattern",
    [
        r"a{1,1000}",
        r"\{2000}",
        r"[{2000}]",
        r"[^]{2000}]",
        r"\x{2000}",
        r"\p{Greek}{3}",
        r"a{b2000}",
        r"[\]{2000}]",
        "{}",
    ],
)
def test_what_is_no_large_repetition(pattern: str) -> None:
    check_repeats(pattern, FIELD)


@pytest.mark.parametrize(
    "pattern", [r"a{1001}", r"a{,1001}", r"(b{3,1001})", r"\\{1001}", r"a{99999999999999}"]
)
def test_large_repetitions(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_repeats(pattern, FIELD)


@settings(deadline=None)
@given(schemas())
def test_a_schema_keeps_its_meaning(schema: dict[str, Any]) -> None:
    text = checked_schema(json.dumps(schema), FIELD)
    assert json.loads(text) == json.loads(json.dumps(schema).replace(', "uniqueItems": false', ""))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["items", "properties", "enum", "pattern", "$ref", "format", "anyOf", "x"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON.map(json.dumps) | st.text(max_size=30))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        kept = checked_schema(text, FIELD)
    except InvalidArgumentError as error:
        kept, field = "{}", error.field
    else:
        field = FIELD
    assert field == FIELD
    assert isinstance(json.loads(kept), dict)


async def test_a_constraint_that_fails_while_the_answer_is_written(service: Service) -> None:
    service.engine.fails_with = EngineFailure.of(ConstraintFailedError("It cannot go on."))
    got = await refusal(service.create(spec_of("x", constraint=asked(json_object=True))))
    assert (got.info.reason, got.field) == ("CONSTRAINT_FAILED", "spec.constraint")
    assert got.message == "It cannot go on."


async def test_features_tell_the_kinds(service: Service) -> None:
    features = service.backend.describe().features
    assert {"json_object", "json_schema", "regex", "choices", "grammar"} <= set(features)
