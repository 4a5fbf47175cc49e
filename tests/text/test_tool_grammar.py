"""The grammars of required and restricted calls: what they permit, and nothing else."""

from __future__ import annotations

import json
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
from inference_service.text.prompt import ChatAbilities
from inference_service.text.tokenizer_json import JsonTokenizer
from inference_service.text.tool_grammar import tool_constraint
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
    xml = ChatAbilities(tools=ToolNotation.XML)
    error = refused(tokenizer, request_of(NOW, tool_choice=ToolChoice(mode=REQUIRED)), xml)
    assert error.field == "spec.tool_choice"
    large = Tool(name="f", enforced=json.dumps({"description": "x" * 2**17}), strict=True)
    assert refused(tokenizer, request_of(large), HERMES).field == "spec.tools"
