"""Tool calls in answers: how an answer is cut changes nothing, and what is no call stays text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import StopTrigger, Tool
from inference_service.model_spec import ToolNotation
from inference_service.text.output import tool_calls
from inference_service.text.output.json_text import JsonReader
from inference_service.text.output.stage import Piece
from inference_service.text.output.tool_calls import ToolCallSplitter, schema_of
from inference_service.text.output.xml_call import converted
from tests.support.cuts import cut


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "box": {"$ref": "#/$defs/box"},
    },
    "$defs": {"box": {"type": "array", "items": {"type": "number"}}},
}
TOOLS = (
    Tool(name="weather", parameters=json.dumps(SCHEMA)),
    Tool(name="now", description="The time."),
)
HERMES, XML = ToolNotation.HERMES, ToolNotation.XML
CUTS = st.lists(st.integers(0, 7), max_size=60)


@dataclass
class Read:
    """What a splitter made of an answer."""

    text: str = ""
    calls: list[list[str]] = field(default_factory=list)
    calls_tools: bool = False
    trigger: StopTrigger | None = None
    ids: list[str] = field(default_factory=list)


def read(
    notation: ToolNotation,
    text: str,
    lengths: Sequence[int] = (),
    *,
    only_one: bool = False,
    only_calls: bool = False,
    is_cut: bool = False,
) -> Read:
    splitter = ToolCallSplitter(notation, TOOLS, only_one=only_one, only_calls=only_calls)
    got = Read()
    parts = list(cut(len(text), lengths))
    for number, part in enumerate(parts, start=1):
        last = number == len(parts)
        piece = Piece(text=text[part], last=last, is_cut=is_cut and last)
        splitter.push(piece)
        got.text += piece.text
        for delta in piece.tool_calls:
            if delta.id:
                assert delta.index == len(got.calls), "calls come one after another"
                got.calls.append([delta.name, ""])
                got.ids.append(delta.id)
            assert delta.index == len(got.calls) - 1
            assert delta.id or not delta.name
            got.calls[-1][1] += delta.arguments
        got.calls_tools, got.trigger = piece.calls_tools, piece.trigger
        if piece.last:
            break
    return got


def hermes(name: str, arguments: str, closed: bool = True) -> str:
    end = "}\n</tool_call>" if closed else ""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}{end}'


def xml(name: str, **parameters: str) -> str:
    elements = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{''.join(elements)}</function>\n</tool_call>"


PARIS = '{"city": "Paris", "days": 2}'
GOOD: dict[str, tuple[ToolNotation, str, str, list[list[str]]]] = {
    "usual": (HERMES, hermes("weather", PARIS), "", [["weather", PARIS]]),
    "no arguments": (HERMES, hermes("now", "{}"), "", [["now", "{}"]]),
    "text before": (
        HERMES,
        "Let me see.\n\n" + hermes("now", "{}"),
        "Let me see.",
        [["now", "{}"]],
    ),
    "text between and behind": (
        HERMES,
        "A\n" + hermes("now", "{}") + "\nB\n" + hermes("weather", PARIS) + "\nC\n",
        "A\nB\nC\n",
        [["now", "{}"], ["weather", PARIS]],
    ),
    "white space between and behind": (
        HERMES,
        hermes("now", "{}") + " \n " + hermes("now", "{}") + "\n\n",
        "",
        [["now", "{}"], ["now", "{}"]],
    ),
    "text behind only": (HERMES, hermes("now", "{}") + "\n\nDone.", "Done.", [["now", "{}"]]),
    "compact": (
        HERMES,
        '<tool_call>{"name":"now","arguments":{}}</tool_call>',
        "",
        [["now", "{}"]],
    ),
    "parameters": (
        HERMES,
        '<tool_call>\n{"name": "now", "parameters": {}}\n</tool_call>',
        "",
        [["now", "{}"]],
    ),
    "arguments first": (
        HERMES,
        '<tool_call>{"arguments": {"city": "X"}, "name": "weather"}</tool_call>',
        "",
        [["weather", '{"city": "X"}']],
    ),
    "arguments as text": (
        HERMES,
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"X\\"}"}</tool_call>',
        "",
        [["weather", '{"city": "X"}']],
    ),
    "a list": (
        HERMES,
        '<tool_call>[{"name": "now"}, {"name": "weather", "arguments": {"city": "\\u00e9"}}]</tool_call>',
        "",
        [["now", "{}"], ["weather", '{"city": "é"}']],
    ),
    "more keys": (
        HERMES,
        '<tool_call>{"name": "now", "arguments": {}, "id": "7"}</tool_call>.',
        ".",
        [["now", "{}"]],
    ),
    "brace missing": (
        HERMES,
        '<tool_call>\n{"name": "now", "arguments": {}\n</tool_call>',
        "",
        [["now", "{}"]],
    ),
    "closing tag missing": (
        HERMES,
        '<tool_call>\n{"name": "now", "arguments": {}}',
        "",
        [["now", "{}"]],
    ),
    "a line break in a string": (
        HERMES,
        hermes("weather", '{"city": "a\nb\tc"}'),
        "",
        [["weather", '{"city": "a\\nb\\tc"}']],
    ),
    "tags in a string": (
        HERMES,
        hermes("weather", '{"city": "</tool_call>}"}'),
        "",
        [["weather", '{"city": "</tool_call>}"}']],
    ),
    "broken, then good": (
        HERMES,
        "<tool_call>\n{oops}\n" + hermes("now", "{}"),
        "<tool_call>\n{oops}",
        [["now", "{}"]],
    ),
    "xml": (
        XML,
        xml("weather", city="Paris", days="2", exact="True", box="[1, 2.5]"),
        "",
        [["weather", '{"city": "Paris", "days": 2, "exact": true, "box": [1, 2.5]}']],
    ),
    "xml without parameters": (XML, "Hm.\n\n" + xml("now"), "Hm.", [["now", "{}"]]),
    "xml text that looks like JSON": (
        XML,
        xml("weather", city="[1]"),
        "",
        [["weather", '{"city": "[1]"}']],
    ),
    "xml with lines and tags in a value": (
        XML,
        xml("weather", city="\na </parameter> b\n<x>\n"),
        "",
        [["weather", '{"city": "\\na </parameter> b\\n<x>\\n"}']],
    ),
    "xml, wrong type": (
        XML,
        xml("weather", days="many"),
        "",
        [["weather", '{"days": "many"}']],
    ),
    "xml without the outer tag": (
        XML,
        "<function=now>\n</function>\n</tool_call>",
        "",
        [["now", "{}"]],
    ),
    "xml, two": (XML, xml("now") + "\n" + xml("now"), "", [["now", "{}"], ["now", "{}"]]),
}


@pytest.mark.parametrize("name", GOOD)
def test_calls_are_read(name: str) -> None:
    notation, answer, text, calls = GOOD[name]
    for lengths in ([], [1] * len(answer), [3] * len(answer)):
        got = read(notation, answer, lengths)
        assert (got.text, got.calls, got.calls_tools) == (text, calls, True)
        for _, arguments in got.calls:
            json.loads(arguments)
    assert all(one.startswith("call_") and len(one) > 20 for one in got.ids)
    assert len(set(got.ids)) == len(got.ids)


BAD = {
    "prose": (HERMES, "I would write <tool_call> here.\n"),
    "not declared": (HERMES, hermes("shell", PARIS)),
    "not JSON": (HERMES, "<tool_call>\n{'name': 'now', 'arguments': {}}\n</tool_call>"),
    "the name is no text": (HERMES, '<tool_call>{"arguments": {}, "name": [{}]}</tool_call>'),
    "no name": (HERMES, '<tool_call>{"arguments": {}}</tool_call>'),
    "a list with one that is not declared": (
        HERMES,
        '<tool_call>[{"name": "now"}, {"name": "shell"}]</tool_call>',
    ),
    "arguments are a list": (HERMES, '<tool_call>{"name": "now", "arguments": [1]}</tool_call>'),
    "cut off in the name": (HERMES, 'Yes.\n<tool_call>\n{"name": "wea'),
    "cut off in the tag": (HERMES, "Yes.\n<tool_c"),
    "xml, not declared": (XML, xml("shell", x="1")),
    "xml, no function": (XML, "<tool_call>\n{}\n</tool_call>"),
    "xml, text among parameters": (XML, "<function=now>\nplease\n</function>"),
    "xml, cut off": (XML, "Yes.\n<tool_call>\n<function=weather>\n<parameter=city>\nPar"),
    "xml, cut off behind a value": (
        XML,
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n",
    ),
    "xml, a line break in the name": (XML, "<function=now\n>\n</function>"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_call_stays_text(name: str) -> None:
    notation, answer = BAD[name]
    for lengths in ([], [1] * len(answer), [5] * len(answer)):
        assert read(notation, answer, lengths) == Read(text=answer)


def test_arguments_are_passed_on_while_they_come() -> None:
    splitter = ToolCallSplitter(HERMES, TOOLS)
    answer = hermes("weather", PARIS)
    arguments = []
    for character in answer:
        piece = Piece(text=character)
        splitter.push(piece)
        arguments += [delta.arguments for delta in piece.tool_calls]
    assert arguments == ["{", *PARIS[1:]]


@pytest.mark.parametrize(
    ("arguments", "passed", "text"),
    [('{"city": "Par', '{"city": "Par', ""), ('{"city": oops} yes', '{"city": ', "oops} yes")],
)
def test_a_call_that_breaks_is_not_continued(arguments: str, passed: str, text: str) -> None:
    answer = hermes("weather", arguments, closed=False)
    for lengths in ([], [1] * len(answer)):
        got = read(HERMES, answer, lengths)
        assert (got.text, got.calls, got.calls_tools) == (text, [["weather", passed]], False)


@pytest.mark.parametrize(
    ("notation", "answer"),
    [
        (HERMES, hermes("weather", PARIS)),
        (HERMES, '<tool_call>{"arguments": {"city": "X"}, "name": "weather"}</tool_call>'),
        (XML, xml("weather", city="Paris", days="2")),
    ],
)
def test_a_call_that_is_cut_is_never_text(notation: ToolNotation, answer: str) -> None:
    said = "Let me see.\n\n"
    [[_, answer_arguments]] = read(notation, answer).calls
    for end in range(len(answer)):
        for lengths in ([], [1] * len(said + answer)):
            forced = read(notation, "\n" + answer[:end], lengths, only_calls=True, is_cut=True)
            assert forced.text == ""
            chosen = read(notation, said + answer[:end], lengths, is_cut=True)
            has_tag = end >= len("<tool_call>")
            assert chosen.text == ("Let me see." if has_tag else said + answer[:end])
            assert chosen.calls == forced.calls
            for _, arguments in forced.calls:
                assert answer_arguments.startswith(arguments)


def test_one_call_ends_the_answer_if_only_one_is_wanted() -> None:
    calls = hermes("now", "{}") + "\n" + hermes("weather", PARIS)
    for lengths in ([], [1] * len(calls)):
        got = read(HERMES, calls, lengths, only_one=True)
        assert (got.calls, got.text) == ([["now", "{}"]], "")
        assert (got.calls_tools, got.trigger) == (True, StopTrigger())
    both = '<tool_call>[{"name": "now"}, {"name": "weather"}]</tool_call>'
    assert read(HERMES, both, only_one=True).calls == [["now", "{}"]]


PIECES = st.lists(
    st.one_of(
        st.sampled_from([answer for _, answer, _, _ in GOOD.values()]),
        st.sampled_from([answer for _, answer in BAD.values()]),
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "<function=now>", "</function>", "\n", " ", "{", '"']
        ),
        st.text(max_size=4),
    ),
    max_size=5,
).map("".join)


@pytest.mark.parametrize("notation", [HERMES, XML])
@settings(deadline=None, max_examples=300)
@given(
    answer=PIECES,
    lengths=CUTS,
    options=st.fixed_dictionaries(
        {name: st.booleans() for name in ("only_one", "only_calls", "is_cut")}
    ),
    data=st.data(),
)
@example(answer=" <tool_call><tool_call>", lengths=[1] * 30, options={}, data=None)
@example(answer="<tool_call>\n<tool_call>", lengths=[1], options={"is_cut": True}, data=None)
def test_cutting_changes_nothing(
    notation: ToolNotation,
    answer: str,
    lengths: list[int],
    options: dict[str, Any],
    data: st.DataObject | None,
) -> None:
    if data is not None and answer:
        at = data.draw(st.integers(0, len(answer)))
        change = data.draw(st.sampled_from(["", "}", '"', "<", "\n", "\\", "</tool_call>"]))
        answer = answer[:at] + change + answer[at + 1 :]
    once = read(notation, answer, **options)
    several = read(notation, answer, lengths, **options)
    once.ids = several.ids = []
    assert several == once
    if not once.calls:
        is_whole = not (options.get("only_calls") or options.get("is_cut"))
        assert once.text == answer if is_whole else answer.startswith(once.text)
    if once.calls_tools:
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in once.calls)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def taken(text: str) -> tuple[str, bool]:
    """What a reader takes of a text, and whether that is a complete value."""
    reader = JsonReader()
    got = ""
    for character in text:
        if reader.done or (one := reader.take(character)) is None:
            break
        got += one
    return got, reader.done


@settings(deadline=None)
@given(st.one_of(st.lists(VALUES), st.dictionaries(st.text(), VALUES)), st.booleans())
def test_the_reader_takes_all_json(value: object, is_compact: bool) -> None:
    if any(one in json.dumps(value) for one in ("Infinity", "NaN")):
        return
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":") if is_compact else None)
    assert taken(text) == (text, True)


@settings(deadline=None)
@given(st.text(alphabet='{}[]":,\\ue-+.015tfn \n', max_size=20))
@example('{"a":1.e5}')
@example("[01]")
@example("[-]")
@example("[1,]")
@example('{"a":tru}')
def test_the_reader_takes_only_json(text: str) -> None:
    text = "[" + text
    got, is_done = taken(text)
    assert is_done == _begins_with_json(text)
    if is_done:
        json.loads(got)


def _begins_with_json(text: str) -> bool:
    try:
        json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, " 7 ", 7),
        ({"type": "integer"}, "7.5", "7.5"),
        ({"type": "number"}, "7.5", 7.5),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "boolean"}, "1", True),
        ({"type": "boolean"}, "FALSE", False),
        ({"type": "null"}, "None", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "string"}, "5", "5"),
        ({"type": "object"}, '{"a": [1]}', {"a": [1]}),
        ({"type": "object"}, "[1]", "[1]"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "5", 5),
        ({"oneOf": [{"anyOf": [{"type": "array"}]}]}, "[]", []),
        ({"enum": [1, 2]}, "2", 2),
        ({"const": True}, "true", True),
        ({"$ref": "#/$defs/a~1b"}, "3", 3),
        ({"$ref": "#/properties/x"}, "3", "3"),
        ({"$ref": "https://example.org/x"}, "3", "3"),
        ({"anyOf": [{"$ref": "#/properties/x"}] * 50}, "3", "3"),  # 50 ways, each with 50 more
        ({}, "3", "3"),
        (True, "3", "3"),
        ({"type": 5, "anyOf": 5, "enum": 5}, "3", "3"),
    ],
)
def test_values_get_their_declared_types(schema: object, text: str, value: object) -> None:
    root = {"properties": {"x": schema}, "$defs": {"a/b": {"type": "integer"}}}
    assert converted(text, root, "x") == value
    assert converted(text, root, "y") == text


@pytest.mark.parametrize("notation", [HERMES, XML])
def test_only_schemas_of_called_functions_are_read(
    notation: ToolNotation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a MiB of them for each answer, on the event loop."""
    read: list[str] = []

    def noted(tool: Tool) -> dict[str, Any]:
        read.append(tool.name)
        return schema_of(tool)

    monkeypatch.setattr(tool_calls, "schema_of", noted)
    schema = json.dumps({"properties": {"n": {"type": "integer"}}})
    tools = [Tool(name=name, parameters=schema) for name in ("a", "b", "c")]
    splitter = ToolCallSplitter(notation, tools)
    assert not read
    call = xml("b", n="1") if notation is XML else hermes("b", '{"n": 1}')
    piece = Piece(text=f"{call}\n{call}", last=True)
    splitter.push(piece)
    assert "".join(delta.arguments for delta in piece.tool_calls) == '{"n": 1}' * 2
    assert read == (["b"] if notation is XML else [])
