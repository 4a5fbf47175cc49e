"""The grammars of required and restricted calls: what they permit, and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import re
from types import SimpleNamespace
from typing import Any

from llguidance import LLTokenizer
import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    Role,
    TextPart,
    Tool,
    ToolChoice,
    ToolMode,
)
from inference_service.errors import InvalidArgumentError, ServiceError, UnsupportedParameterError
from inference_service.grammar.matcher import new_matcher
from inference_service.grammar.vocabulary import vocabulary_of
from inference_service.model_spec import ToolNotation
from inference_service.text import xml_grammar
from inference_service.text.output.stage import Piece
from inference_service.text.output.tool_calls import ToolCallSplitter
from inference_service.text.prompt import ChatAbilities
from inference_service.text.tokenizer_json import JsonTokenizer
from inference_service.text.tool_grammar import MAX_GRAMMAR_BYTES, tool_constraint
from inference_service.text.xml_grammar import json_rule
from tests.support.line_counts import lines_of
from tests.support.qwen_text import tokenizer_json


SCHEMA = json.dumps(
    {
        "properties": {"city": {"type": "string"}, "days": {"enum": [1, 2]}},
        "required": ["city"],
        "additionalProperties": False,
    }
)
WEATHER = Tool(name="weather", parameters=SCHEMA, enforced=SCHEMA)
STRICT = Tool(name="weather", parameters=SCHEMA, enforced=SCHEMA, strict=True)
NOW = Tool(name="now")
REQUIRED, NONE = ToolMode.REQUIRED, ToolMode.NONE
HERMES = ChatAbilities(tools=ToolNotation.HERMES)
FORM = Constraint(
    kind=ConstraintKind.JSON_SCHEMA, text='{"type": "array", "items": {"type": "integer"}}'
)


@pytest.fixture(scope="module")
def tokenizer() -> JsonTokenizer:
    return JsonTokenizer(tokenizer_json())


@pytest.fixture(scope="module")
def plain() -> JsonTokenizer:
    """Without tokens for the tags, as Qwen2-VL's."""
    return JsonTokenizer(tokenizer_json().replace("<tool_call>", "<tool_xxxx>"))


def vocabulary(tokenizer: JsonTokenizer) -> LLTokenizer:
    end = tokenizer.added_tokens["<|im_end|>"]
    return vocabulary_of(tokenizer, tokenizer.vocab_size, (end,))


def request_of(*tools: Tool, **fields: Any) -> ChatRequest:
    messages = (ChatMessage(role=Role.USER, parts=(TextPart(text="x"),)),)
    return ChatRequest(request_id="r", model="m", messages=messages, tools=tools, **fields)


def permits(
    tokenizer: JsonTokenizer, request: ChatRequest, answer: str, chat: ChatAbilities = HERMES
) -> bool:
    constraint = tool_constraint(request, chat, tokenizer)
    assert constraint is not None
    matcher = new_matcher(vocabulary(tokenizer), constraint)
    token_ids = tokenizer.encode(answer)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


PARIS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
TOWN = '<tool_call>\n{"name": "weather", "arguments": {"town": "Paris"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {"zone": ["UTC", 0]}}\n</tool_call>'
CASES: dict[str, tuple[ToolChoice, tuple[Tool, ...], dict[str, bool]]] = {
    "required": (
        ToolChoice(mode=REQUIRED),
        (WEATHER, NOW),
        {
            PARIS: True,
            f"{PARIS}\n{TIME}": True,
            TOWN: False,
            "": False,
            "No.": False,
            f"Yes.\n{PARIS}": False,
            f"{PARIS}\nDone.": False,
            PARIS.replace("now", "shell").replace("weather", "shell"): False,
            PARIS.replace(", ", ",  "): False,
        },
    ),
    "one at most": (
        ToolChoice(mode=REQUIRED, parallel=False),
        (WEATHER, NOW),
        {TIME: True, f"{TIME}\n{TIME}": False},
    ),
    "named": (
        ToolChoice(mode=REQUIRED, names=("now",), parallel=False),
        (WEATHER, NOW),
        {TIME: True, PARIS: False, f"{TIME}\n{TIME}": False},
    ),
    "allowed": (
        ToolChoice(names=("now",)),
        (WEATHER, NOW),
        {"": True, "No.": True, f"Yes.\n{TIME}\n{TIME}\nDone.": True, f"Yes.\n{PARIS}": False},
    ),
    "strict": (
        ToolChoice(),
        (STRICT, NOW),
        {"No.": True, f"Yes.\n{PARIS}": True, TOWN: False, TIME: True},
    ),
    "strict, one at most": (
        ToolChoice(parallel=False),
        (STRICT, NOW),
        {"No.": True, f"Yes.\n{PARIS}": True, f"{PARIS}\n{PARIS}": False},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_permitted(tokenizer: JsonTokenizer, plain: JsonTokenizer, name: str) -> None:
    choice, tools, answers = CASES[name]
    request = request_of(*tools, tool_choice=choice)
    for answer, wanted in answers.items():
        assert permits(tokenizer, request, answer) is wanted, answer
        if choice.mode is REQUIRED:
            assert permits(plain, request, answer) is wanted, answer
    if choice.mode is not REQUIRED:  # text cannot be told from a tag that is text
        assert refused(plain, request, HERMES).field == "spec.tool_choice"


def test_a_form_beside_tools_is_that_of_an_answer_without_calls(tokenizer: JsonTokenizer) -> None:
    forms = {
        FORM: "[1, 2]",
        Constraint(kind=ConstraintKind.JSON_OBJECT): '{"a": null}',
        Constraint(kind=ConstraintKind.CHOICES, values=("yes", 'a "no"')): 'a "no"',
    }
    for form, answer in forms.items():
        request = request_of(WEATHER, NOW, constraint=form)
        assert permits(tokenizer, request, answer)
        assert permits(tokenizer, request, f"{PARIS}\n{TIME}")
        assert not permits(tokenizer, request, "No.")


def test_newlines_behind_reasoning_are_permitted(tokenizer: JsonTokenizer) -> None:
    request = request_of(NOW, tool_choice=ToolChoice(mode=REQUIRED))
    thinks = ChatAbilities(tools=ToolNotation.HERMES, reasoning=True)
    assert permits(tokenizer, request, f"\n\n{TIME}", thinks)
    assert permits(tokenizer, request, TIME, thinks)
    assert not permits(tokenizer, request, f"\n\n{TIME}")


def test_what_needs_no_grammar_has_none(tokenizer: JsonTokenizer) -> None:
    for request in (
        request_of(),
        request_of(WEATHER, NOW),
        request_of(STRICT, tool_choice=ToolChoice(mode=NONE), constraint=FORM),
        request_of(constraint=FORM),
        request_of(WEATHER, tool_choice=ToolChoice(parallel=False)),
    ):
        assert tool_constraint(request, HERMES, tokenizer) is None


def refused(tokenizer: JsonTokenizer, request: ChatRequest, chat: ChatAbilities) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        tool_constraint(request, chat, tokenizer)
    return caught.value


def test_what_cannot_be_both_is_refused(tokenizer: JsonTokenizer) -> None:
    must = request_of(NOW, tool_choice=ToolChoice(mode=REQUIRED), constraint=FORM)
    error = refused(tokenizer, must, HERMES)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "spec.constraint"
    lark = Constraint(kind=ConstraintKind.LARK, text='start: "x"')
    error = refused(tokenizer, request_of(NOW, constraint=lark), HERMES)
    assert isinstance(error, UnsupportedParameterError)
    assert error.field == "spec.constraint"
    large = Tool(name="f", enforced=json.dumps({"description": "x" * 2**17}), strict=True)
    assert refused(tokenizer, request_of(large), HERMES).field == "spec.tools"
    lenient = (NOW, dataclasses.replace(large, strict=False))
    small = tool_constraint(
        request_of(*lenient, tool_choice=ToolChoice(mode=REQUIRED)), HERMES, tokenizer
    )
    assert small is not None
    assert "xxxx" not in small.text


MANY = {f"p{number}": {"$ref": "#/$defs/a"} for number in range(1200)}
COSTLY: dict[str, dict[str, Any]] = {
    "alternatives of many properties": {
        "properties": MANY,
        "$defs": {"a": {"anyOf": [{}] * 4000}},
    },
    "types of many properties": {
        "properties": MANY,
        "$defs": {"a": {"type": ["string"] * 1800}},
    },
    "values of many properties": {"properties": MANY, "$defs": {"a": {"enum": [1] * 5000}}},
    "definitions of many properties": {
        "properties": {name: {"type": "integer"} for name in MANY},
        "$defs": {"a": {"description": "x" * 20_000}},
    },
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("case", COSTLY)
def test_the_work_of_a_schema_is_bounded(
    tokenizer: JsonTokenizer, case: str, strict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def rule(schema: Any) -> str:
        written.append(len(text := json_rule(schema)))
        return text

    monkeypatch.setattr(xml_grammar, "json_rule", rule)
    text = json.dumps({"type": "object", **COSTLY[case]})
    assert len(text) < 2**16
    tool = Tool(name="f", parameters=text, enforced=text, strict=strict)
    request = request_of(tool, tool_choice=ToolChoice(mode=REQUIRED))

    def write() -> None:
        with contextlib.suppress(InvalidArgumentError):
            tool_constraint(request, XML, tokenizer)

    assert lines_of(write) < 2_000_000
    assert sum(written) < 2 * MAX_GRAMMAR_BYTES


def many_tools(schema: dict[str, Any], count: int, *, strict: bool) -> ChatRequest:
    text = json.dumps({"type": "object", **schema})
    tools = [
        Tool(name=f"f{n}", parameters=text, enforced=text, strict=strict) for n in range(count)
    ]
    return request_of(*tools, tool_choice=ToolChoice(mode=REQUIRED))


@pytest.mark.parametrize("strict", [False, True])
def test_the_work_of_all_tools_is_bounded(tokenizer: JsonTokenizer, strict: bool) -> None:
    """A small schema may take all steps that there are for one; 64 of them take not many more."""
    properties = {f"p{number}": {"$ref": "#/$defs/x"} for number in range(7)}
    request = many_tools(
        {"properties": properties, "$defs": {"x": {"anyOf": [{}] * 2600}}}, 64, strict=strict
    )

    def write() -> None:
        with contextlib.suppress(InvalidArgumentError):
            tool_constraint(request, XML, tokenizer)

    assert lines_of(write) < 2_000_000


def test_types_of_many_tools_are_all_found(tokenizer: JsonTokenizer) -> None:
    either = {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}
    properties = {f"p{number}": either for number in range(5)}
    request = many_tools(
        {"properties": properties, "$defs": {"n": {"type": "integer"}}}, 64, strict=False
    )
    constraint = tool_constraint(request, XML, tokenizer)
    assert constraint is not None
    assert len(re.findall(r"^t\d+_\d_json: %json", constraint.text, re.MULTILINE)) == 64 * 5
    assert not re.search(r"^t\d+_\d_text", constraint.text, re.MULTILINE)


def test_required_names_are_looked_up(
    tokenizer: JsonTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names(list[Any]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("each property is compared with each name")

    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "required": Names(["b", 1])}
    loads = SimpleNamespace(loads=lambda _: schema, dumps=json.dumps)
    monkeypatch.setattr(xml_grammar, "json", loads)
    tool = Tool(name="f", enforced="{}", strict=True)
    made = tool_constraint(request_of(tool, tool_choice=ToolChoice(mode=REQUIRED)), XML, tokenizer)
    assert made is not None
    assert "t0_0? t0_1 " in made.text


def xml(name: str, **parameters: str) -> str:
    elements = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{''.join(elements)}</function>\n</tool_call>"


XML = ChatAbilities(tools=ToolNotation.XML)
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "kind": {"enum": ["a", "b c"]},
        "box": {"$ref": "#/$defs/box"},
    },
    "required": ["city"],
    "$defs": {"box": {"type": "array", "items": {"type": "integer"}}},
}
PLAN = Tool(name="plan", enforced=json.dumps(TRIP), strict=True)
CLOSED = Tool(name="off", enforced='{"properties": {}, "additionalProperties": false}')


@pytest.mark.parametrize(
    ("answer", "permitted"),
    [
        (xml("plan", city="Paris"), True),
        (xml("plan", city="a\nb </parameter> c", days="3", kind="b c", box="[1, 2]"), True),
        (xml("plan", days="3"), False),
        (xml("plan", city="x", days="many"), False),
        (xml("plan", city="x", kind="d"), False),
        (xml("plan", city="x", box='["y"]'), False),
        (xml("plan", city="x", colour="y"), False),
        (xml("now"), True),
        (xml("now", any="\ntext\n", other="1"), True),
        (xml("off"), True),
        (xml("off", any="1"), False),
        (xml("shell"), False),
        (f"{xml('now')}\n{xml('plan', city='x')}", True),
        (f"Yes.\n{xml('now')}", False),
    ],
)
def test_calls_in_xml(tokenizer: JsonTokenizer, answer: str, permitted: bool) -> None:
    must = request_of(PLAN, NOW, CLOSED, tool_choice=ToolChoice(mode=REQUIRED))
    assert permits(tokenizer, must, answer, XML) is permitted
    may = request_of(PLAN, NOW, CLOSED)
    assert permits(tokenizer, may, f"Yes.\n{answer}", XML) is (permitted or answer[:3] == "Yes")


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"required": ["a"]}]},
        {"properties": {"a": {"type": "string", "pattern": "x+"}}},
    ],
)
def test_a_strict_tool_that_xml_cannot_enforce(tokenizer: JsonTokenizer, schema: Any) -> None:
    tool = Tool(name="f", enforced=json.dumps(schema), strict=True)
    assert refused(tokenizer, request_of(tool), XML).field == "spec.tools"
    lenient = Tool(name="f", enforced=json.dumps(schema))
    must = request_of(lenient, tool_choice=ToolChoice(mode=REQUIRED))
    assert tool_constraint(must, XML, tokenizer) is not None


@pytest.mark.parametrize("chat", [HERMES, XML])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_permitted_is_read_as_calls(
    tokenizer: JsonTokenizer, chat: ChatAbilities, seed: int
) -> None:
    """A random walk through the grammar ends in calls whose arguments match the schema."""
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b c"]}, "exact": {"type": "boolean"}},
        "required": ["kind", "exact"],
        "additionalProperties": False,
    }
    tools = (Tool(name="plan", parameters=json.dumps(schema), enforced=json.dumps(schema)), CLOSED)
    choice = ToolChoice(mode=REQUIRED, parallel=seed % 2 > 0)
    constraint = tool_constraint(request_of(*tools, tool_choice=choice), chat, tokenizer)
    assert constraint is not None
    words = vocabulary(tokenizer)
    matcher = new_matcher(words, constraint)
    chance, token_ids = random.Random(seed), list[int]()
    while len(token_ids) < 4000:
        mask = matcher.compute_bitmask()
        permitted = [i for i in range(tokenizer.vocab_size) if mask[i // 8] >> (i % 8) & 1]
        token_id = chance.choice(permitted)
        if token_id in words.eos_tokens:
            break
        assert matcher.consume_token(token_id)
        token_ids.append(token_id)
    splitter = ToolCallSplitter(chat.tools, tools)
    piece = Piece(text=tokenizer.decode(token_ids, skip_special_tokens=False), last=True)
    splitter.push(piece)
    assert piece.text == ""
    assert piece.calls_tools
    for call in piece.tool_calls:
        arguments = json.loads(call.arguments)
        if call.name == "plan":
            assert arguments["kind"] in ("a", "b c")
            assert isinstance(arguments["exact"], bool)
        else:
            assert arguments == {}
