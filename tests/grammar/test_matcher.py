"""Answers in the form of a constraint, written by chance with the demo model's vocabulary and others."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import itertools
import json
import random
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import jsonschema
from llguidance import LLTokenizer
import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.grammar.matcher import GrammarError, new_matcher, try_out
from inference_service.grammar.vocabulary import vocabulary_of
from inference_service.grpc_api.json_schema import checked_schema
from inference_service.text.tokenizer_json import JsonTokenizer
from inference_service.text.tokenizer_tiktoken import TiktokenTokenizer
from tests.grammar.conftest import Write, written
from tests.support.json_schemas import schemas
from tests.support.qwen_text import tokenizer_json
from tests.support.unions import DISJOINT


def json_schema(schema: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(schema))


def regex(pattern: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, text=pattern)


def choices(*values: str) -> Constraint:
    return Constraint(kind=ConstraintKind.CHOICES, values=values)


def lark(text: str) -> Constraint:
    return Constraint(kind=ConstraintKind.LARK, text=text)


@settings(deadline=None, max_examples=150)
@given(schemas(), st.integers(0, 2**32))
def test_json_matches_its_schema(vocabulary: LLTokenizer, schema: dict, seed: int) -> None:
    text = checked_schema(json.dumps(schema), "spec.constraint.json_schema")
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)
    answer = written(vocabulary, constraint, random.Random(seed), 4000)
    jsonschema.validate(json.loads(answer), schema)
    assert "\n" not in answer


@pytest.mark.parametrize("case", [case for case in DISJOINT if not case.startswith("many")])
def test_one_of_alternatives_that_exclude_each_other(vocabulary: LLTokenizer, case: str) -> None:
    text = checked_schema(json.dumps(DISJOINT[case]), "spec.constraint.json_schema")
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)
    try_out(vocabulary, constraint)
    for seed in range(4):
        answer = written(vocabulary, constraint, random.Random(seed), 2000)
        try:
            value = json.loads(answer)
        except json.JSONDecodeError:  # cut: it goes on for ever
            continue
        jsonschema.validate(value, DISJOINT[case])


@pytest.mark.parametrize("seed", range(3))
def test_any_json_object(write: Write, seed: int) -> None:
    constraint = Constraint(kind=ConstraintKind.JSON_OBJECT)
    answers = [write(constraint, seed + 10 * n, 300) for n in range(10)]
    complete = [answer for answer in answers if answer.endswith("}")]
    assert all(answer.startswith("{") for answer in answers)
    assert complete
    for answer in complete:
        try:
            assert isinstance(json.loads(answer), dict)
        except json.JSONDecodeError:  # cut after an inner brace
            assert len(answer) > 100


@pytest.mark.parametrize(
    "pattern", [r"[a-c]{3}-\d+", "(ab|cd)*e", r"é+ .{1,5}", r"a/b\/c\\", "", r"\p{Lu}\x{41}"]
)
def test_regular_expressions_match_as_a_whole(write: Write, pattern: str) -> None:
    plain = pattern.replace(r"\p{Lu}", "[A-ZÀ-Þ]").replace(r"\x{41}", "A")
    for seed in range(5):
        answer = write(regex(pattern), seed, 200)
        if r"\p" in pattern:
            assert answer[0].isupper()
            assert answer[1:] == "A"
        elif len(answer) < 100:
            assert re.fullmatch(plain, answer), answer


VALUES = (
    "red",
    "redder",
    "a.b",
    "x|y",
    "(1)",
    "^$",
    "[z]{2}",
    "\\d",
    'say "hi"\n/',
    "",
    "é",
    "e\u0301",
)


def test_choices_are_literal(write: Write) -> None:
    seen = {write(choices(*VALUES), seed) for seed in range(200)}
    assert seen <= set(VALUES)
    assert len(seen) > 6
    assert write(choices(*(f"value {n}" for n in range(5000)))).startswith("value ")


@pytest.mark.parametrize(
    "text", ["<think>", "</tool_call>x", "<|im_end|>", "a<|vision_start|>", "e\u0301"]
)
def test_text_like_an_added_token_is_text(write: Write, text: str) -> None:
    """Also where a grammar enforces it, and where the tokenizer would normalise it."""
    assert write(choices(text)) == text
    assert json.loads(write(json_schema({"const": text}))) == text
    assert write(lark(f'start: {json.dumps(text)} "."')) == f"{text}."


def test_added_tokens_are_named_in_a_grammar(write: Write, vocabulary: LLTokenizer) -> None:
    matcher = new_matcher(vocabulary, lark("start: <think> /x/ </think>"))
    assert matcher.consume_tokens([1248, *vocabulary.tokenize_str("x"), 1249, 1232])
    assert write(lark("start: <think> /x/ </think>")) == "<think>x</think>"


def test_a_grammar_of_several_rules(write: Write) -> None:
    calc = 'start: term (("+"|"-") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]{1,3}/'
    for seed in range(10):
        answer = write(lark(calc), seed, 60)
        assert set(answer) <= set("0123456789+-()")


def test_properties_come_in_the_order_of_the_schema(write: Write) -> None:
    values = {"z": 1, "a": 2**53 - 1, "é": "\u4e2d", "b": 1.5}
    schema = {"properties": {name: {"const": value} for name, value in values.items()}}
    schema |= {"required": list(values), "additionalProperties": False, "type": "object"}  # type: ignore[dict-item]
    for after_break in (False, True):
        constraint = dataclasses.replace(json_schema(schema), after_break=after_break)
        answer = json.loads(write(constraint))
        assert list(answer) == list(values)
        assert answer == values


def test_a_schema_cannot_ask_for_free_white_space(write: Write) -> None:
    options = {"whitespace_flexible": True, "whitespace_pattern": "[ \\n]+", "lenient": True}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 2}},
    }
    schema |= {"required": ["a", "b"], "additionalProperties": False, "x-guidance": options}
    assert {write(json_schema(schema), seed) for seed in range(5)} == {'{"a": 1, "b": 2}'}


@pytest.mark.parametrize(
    ("constraint", "form"),
    [
        (json_schema({"const": "</a>"}), '"</a>"'),
        (Constraint(kind=ConstraintKind.JSON_OBJECT), None),
        (regex("a/b"), "a/b"),
        (choices('x"/\\', "y"), None),
        (choices(""), ""),
    ],
)
def test_line_breaks_after_the_reasoning(
    write: Write, constraint: Constraint, form: str | None
) -> None:
    constraint = dataclasses.replace(constraint, after_break=True)
    answers = [write(constraint, seed, 40) for seed in range(60)]
    begun = {answer[: len(answer) - len(answer.lstrip("\n"))] for answer in answers}
    assert begun <= {"", "\n", "\n\n"}
    assert len(begun) > 1
    rest = {answer.lstrip("\n") for answer in answers}
    if constraint.kind is ConstraintKind.JSON_OBJECT:
        assert all(answer.startswith("{") for answer in rest)
    else:
        assert rest == ({form} if form is not None else set(constraint.values))


def test_a_trial_goes_on_while_tokens_are_expensive(vocabulary: LLTokenizer) -> None:
    """By a clock that counts its readings: it stops early only where they have become cheap."""

    def readings(cost_s: Callable[[int], float]) -> int:
        seen = itertools.count()
        now_s = 0.0

        def clock() -> float:
            nonlocal now_s
            now_s += cost_s(next(seen))
            return now_s

        try_out(vocabulary, regex("[a-z]{900}"), clock)
        return next(seen)

    whole = readings(lambda _: 0.0)
    assert readings(lambda _: 0.02) == whole
    assert readings(lambda count: 0.6 if count == 2 else 0.0) < whole / 4


def test_a_trial_does_not_end_with_an_answer_that_may_go_on(vocabulary: LLTokenizer) -> None:
    counts = [itertools.count() for _ in range(2)]
    for count, pattern in zip(counts, ("[a-z]+", "[a-z]{900}"), strict=True):
        try_out(vocabulary, regex(pattern), lambda: 0.0 * next(count))  # noqa: B023 - called at once
    assert next(counts[0]) == next(counts[1])


OBJECT = {"type": "object"}
STRING = {"type": "string"}
LARGE = {
    "800 required": json_schema(
        OBJECT
        | {"properties": {f"k{n}": STRING for n in range(800)}}
        | {"required": [f"k{n}" for n in range(800)]}
    ),
    "many constants": json_schema({"enum": [f"w{n}x{7919 * n % 1000}" for n in range(2000)]}),
    "nested": json_schema(
        OBJECT
        | {
            "properties": {
                f"k{n}": OBJECT | {"properties": {f"j{m}": STRING for m in range(30)}}
                for n in range(30)
            }
        }
    ),
    "alternatives": json_schema(
        {
            "anyOf": [
                OBJECT
                | {"properties": {"t": {"const": f"t{n}"}, "v": STRING}, "required": ["t", "v"]}
                for n in range(100)
            ]
        }
    ),
    "lengths": json_schema(STRING | {"minLength": 500, "maxLength": 4000}),
    "words": regex(r"(\w+ ?){1,200}\."),
    "5000 choices": choices(*(f"value {n}" for n in range(5000))),
    "900 rules": lark(
        'start: (item " ")+\nitem: '
        + " | ".join(f'"w{n}x{7919 * n % 1000}" "(" item? ")"' for n in range(900))
    ),
    "sums": lark(
        'start: e\ne: e "+" e | e "*" e | "(" e ")" | NUMBER\nNUMBER: /[0-9]+(\\.[0-9]+)?/'
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_forms_are_not_too_complex(vocabulary: LLTokenizer, name: str) -> None:
    """Those of honest callers, by the limits of the trial and of masks."""
    try_out(vocabulary, LARGE[name])
    assert written(vocabulary, LARGE[name], random.Random(1), 150)


REFUSED = {
    "not": json_schema({"not": {"type": "string"}}),
    "overlap": json_schema({"oneOf": [{"type": "string"}, {"type": "string"}]}),
    "contradiction": json_schema({"type": "integer", "minimum": 3, "maximum": 1}),
    "no end": json_schema({"$ref": "#"}),
    "nowhere": json_schema({"$ref": "#/$defs/x"}),
    "no object": json_schema([1]),
    "no json": Constraint(kind=ConstraintKind.JSON_SCHEMA, text="{"),
    "open group": regex("(a"),
    "look-ahead": regex("(?=a)b"),
    "word boundary": regex(r"\bword\b"),
    "back-reference": regex(r"(a)\1"),
    "deep": regex("(" * 1500 + "a" + ")" * 1500),
    "no start": lark("begin: /a/"),
    "unknown rule": lark("start: other"),
    "unknown token": lark("start: <no_such_token>"),
    "deep grammar": lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "too many rows": json_schema(
        {"type": "object", "properties": {f"k{n}": {} for n in range(2500)}}
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_told_in_one_line(vocabulary: LLTokenizer, name: str) -> None:
    with pytest.raises(GrammarError) as caught:
        try_out(vocabulary, REFUSED[name])
    text = str(caught.value)
    assert 3 < len(text) <= 203
    assert "\n" not in text
    assert "<state>" not in text
    assert "panicked" not in text
    assert not INTERNAL.search(text)


IN_WORDS: dict[str, tuple[Constraint, str]] = {
    "overlap": (json_schema({"oneOf": [{"type": "string"}, {"minLength": 1}]}), "oneOf has altern"),
    "no end": (json_schema({"$ref": "#"}), "it refers to itself without end"),
    "no end in all": (json_schema({"allOf": [{"$ref": "#"}]} | OBJECT), "refers to itself without"),
    "no end, required": (
        json_schema({"properties": {"a": {"$ref": "#"}}, "required": ["a"]} | OBJECT),
        "it refers to itself without end",
    ),
    "no end of a grammar": (lark("start: start"), "it refers to itself without end"),
    "too many properties": (
        json_schema(OBJECT | {"minProperties": 2, "additionalProperties": False}),
        "minProperties, maxProperties and the properties contradict each other",
    ),
    "one property too few": (
        json_schema(
            {"properties": {"a": {}}, "required": ["a"], "minProperties": 2}
            | {"additionalProperties": False}
            | OBJECT
        ),
        "minProperties, maxProperties and the properties contradict each other",
    ),
    "two required": (
        json_schema(OBJECT | {"required": ["a", "b"], "maxProperties": 1}),
        "minProperties, maxProperties and the properties contradict each other",
    ),
    "optional properties": (
        json_schema(OBJECT | {"properties": {"a": {}}, "minProperties": 1}),
        "only where all properties are required",
    ),
    "no text": (
        json_schema({"type": "string", "pattern": "^a$", "minLength": 9}),
        "the pattern, the format and the lengths of a text contradict each other",
    ),
    "no value": (json_schema({"enum": []}), "the list of values or alternatives has none"),
    "no multiple": (
        json_schema({"type": "number", "multipleOf": 0.5, "minimum": 0.1, "maximum": 0.2}),
        "multipleOf has no multiple between the minimum and the maximum",
    ),
    "no range": (
        json_schema({"type": "integer", "minimum": 5, "maximum": 3}),
        "no value can match: minimum (5) is greater than maximum (3)",
    ),
    "word boundaries": (json_schema({"type": "string", "pattern": r"\ba"}), "word boundaries"),
    "word boundaries of a regex": (regex(r"\ba"), "look-around and word boundaries"),
    "a number": (json_schema({"minimum": "1"}), 'minimum must be a number, but is "1"'),
    "a count": (json_schema({"minLength": -1}), "minLength must be an integer of at least 0"),
    "a list": (json_schema({"required": "a"}), 'required must be an array, but is "a"'),
    "a name": (json_schema({"required": [1]}), "required must be of type string, but has 1"),
    "a pattern": (json_schema({"pattern": 5}), "pattern must be of type string, but has 5"),
    "multiples of nothing": (json_schema({"multipleOf": 0}), "multipleOf must be more than 0"),
    "nowhere": (json_schema({"$ref": "#/$defs/x"}), "$ref '#/$defs/x' refers to nothing"),
    "no anchor": (json_schema({"$ref": "#x"}), "$ref '#x' refers to nothing"),
    "no type": (json_schema({"type": "File"}), "type is File, but must be array, boolean"),
    "in a grammar": (lark('start: %json {"type": "any"}'), "type is any, but must be"),
    "names": (
        json_schema(OBJECT | {"patternProperties": {"a": {}, "a+": {}}}),
        "patternProperties has /a/ and /a+/, which the same name may match",
    ),
}
INTERNAL = re.compile(
    r"NoExtension|ff_tokens|lexeme|coerce_|f64|Unsatisf|pointer|anchor|Unicode|Search|compile JSON"
)


@pytest.mark.parametrize("name", IN_WORDS)
def test_errors_are_in_the_words_of_the_schema(vocabulary: LLTokenizer, name: str) -> None:
    constraint, words = IN_WORDS[name]
    with pytest.raises(GrammarError, match=re.escape(words)) as caught:
        try_out(vocabulary, constraint)
    assert not INTERNAL.search(str(caught.value))


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([ConstraintKind.REGEX, ConstraintKind.LARK, ConstraintKind.JSON_SCHEMA]),
    st.text(max_size=60)
    | st.lists(st.sampled_from([*r'ab(){}[]|\*+?.^$,1/"<>:&~ ', "\nstart: "]), max_size=40).map(
        "".join
    ),
)
def test_any_text_is_compiled_or_refused(
    vocabulary: LLTokenizer, kind: ConstraintKind, text: str
) -> None:
    try:
        try_out(vocabulary, Constraint(kind=kind, text=text))
    except GrammarError as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told


def bytes_of_tiktoken() -> TiktokenTokenizer:
    words = ["he", "ll", "hell", "hello", ' "', '": ', "éa"]
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {word.encode(): 256 + index for index, word in enumerate(words)}
    special = {name: len(ranks) + n for n, name in enumerate(("<|end|>", "<|user|>", "<box>"))}
    return TiktokenTokenizer(ranks, special, pattern=r"\S+|\s+", normalize=True)


@pytest.mark.parametrize("kind", ["tiktoken", "json"])
def test_every_kind_of_tokenizer(kind: str) -> None:
    tokenizer = bytes_of_tiktoken() if kind == "tiktoken" else JsonTokenizer(tokenizer_json())
    ends = tuple(tokenizer.special_tokens.values())[:2]
    size = tokenizer.vocab_size + 37  # a model's logits may be wider
    vocabulary = vocabulary_of(tokenizer, size, ends)
    assert set(vocabulary.eos_tokens) == set(ends)
    assert vocabulary.vocab_size == size
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"hello": {"enum": ["hé<box>", "e\u0301"]}},
    }
    schema |= {"required": ["hello"], "additionalProperties": False}
    for seed in range(8):
        answer = written(vocabulary, json_schema(schema), random.Random(seed), 200)
        jsonschema.validate(json.loads(answer), schema)
    assert written(vocabulary, choices("<|user|>"), random.Random(0), 50) == "<|user|>"
