"""Writes the grammar of an answer whose tool calls are required, or restricted in names or arguments.

Lark notation, as llguidance reads it: a token of the vocabulary is written without quotes. JSON is spaced as models are
trained to write it, with the name before the arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
import functools
import itertools
import json
from typing import Any, Final

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.domain import ChatRequest, Tool, ToolChoice, ToolMode
from inference_service.errors import InvalidArgumentError, UnsupportedParameterError
from inference_service.model_spec import ToolNotation
from inference_service.text.output import hermes
from inference_service.text.prompt import ChatAbilities
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.xml_grammar import TypeFinder, json_rule, xml_tool


MAX_GRAMMAR_BYTES: Final = 128 * 2**10


def tool_constraint(
    request: ChatRequest, abilities: ChatAbilities, tokenizer: Tokenizer
) -> Constraint | None:
    """The form of an answer that the tools of a request ask for, together with a form that it has itself.

    Args:
        request: The request.
        abilities: Those of the model's chat format.
        tokenizer: The model's tokenizer.

    Returns:
        The constraint; None = the tools ask for none.

    Raises:
        InvalidArgumentError: The tools are too large for a grammar, or contradict the request's own form.
        UnsupportedParameterError: Such calls are not supported by the model's notation.
    """
    if not asks_for_form(request, abilities):
        return None
    choice = request.tool_choice
    tools = [tool for tool in request.tools if not choice.names or tool.name in choice.names]
    start = _start(choice, request.constraint, tokenizer)
    space = "break? " if abilities.reasoning else ""
    rules = itertools.chain(
        (f"start: {space}({start})", 'break: "\\n" | "\\n\\n"'),
        _form(request.constraint) if request.constraint is not None else (),
        _calls(tools, abilities.tools, tokenizer),
    )
    text, size = _written(rules)
    if size > MAX_GRAMMAR_BYTES:
        smaller = without_schemas(request.tools)
        if smaller != request.tools:
            return tool_constraint(replace(request, tools=smaller), abilities, tokenizer)
        raise InvalidArgumentError(
            f"tools have at least {size} bytes as a grammar, but at most {MAX_GRAMMAR_BYTES} are allowed where"
            " calls are required or restricted.",
            field="spec.tools",
        )
    return Constraint(kind=ConstraintKind.LARK, text=text)


def asks_for_form(request: ChatRequest, abilities: ChatAbilities) -> bool:
    """Whether the tools of a request ask for a form of the answer."""
    choice = request.tool_choice
    if not request.tools or choice.mode is ToolMode.NONE or abilities.tools is ToolNotation.NONE:
        return False
    is_restricted = bool(choice.names) or any(tool.strict for tool in request.tools)
    return choice.mode is ToolMode.REQUIRED or is_restricted or request.constraint is not None


def _start(choice: ToolChoice, own: Constraint | None, tokenizer: Tokenizer) -> str:
    """What an answer consists of: calls, and text or the form of the request's own constraint.

    Raises:
        InvalidArgumentError: A call is required, and another form.
        UnsupportedParameterError: The vocabulary cannot tell calls from text.
    """
    is_required = choice.mode is ToolMode.REQUIRED
    if is_required and own is not None:
        raise InvalidArgumentError(
            "constraint asks for a form of the answer, but tool_choice requires a call: send one of them.",
            field="spec.constraint",
        )
    calls = 'call ("\\n" call)*' if choice.parallel else "call"
    if is_required:
        return calls
    if own is not None:
        return f"form | {calls}"
    if hermes.OPEN_TAG not in tokenizer.added_tokens:
        raise UnsupportedParameterError(
            "Allowed functions and strict tools are supported with this model only where calls are required: its"
            " vocabulary has no token by which a call is told from text.",
            field="spec.tool_choice",
        )
    return "text? (call text?)*" if choice.parallel else "text? call?"


def _written(rules: Iterable[str]) -> tuple[str, int]:
    """A grammar and its bytes, up to a rule beyond `MAX_GRAMMAR_BYTES`: the rest may be many times as long."""
    lines: list[str] = []
    size = -1
    for rule in rules:
        lines.append(rule)
        size += len(rule.encode()) + 1
        if size > MAX_GRAMMAR_BYTES:
            break
    return "\n".join(lines), size


def without_schemas(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The tools, of which those that are not strict may be called with any object."""
    return tuple(tool if tool.strict else replace(tool, enforced="") for tool in tools)


def _calls(tools: Sequence[Tool], notation: ToolNotation, tokenizer: Tokenizer) -> Iterator[str]:
    opens, closes = (
        tag if tag in tokenizer.added_tokens else json.dumps(tag)
        for tag in (hermes.OPEN_TAG, hermes.CLOSE_TAG)
    )
    names = " | ".join(f"t{index}" for index in range(len(tools)))
    # In a grammar, text never has added tokens.
    yield "text: /(?s:.+)/"
    yield f'call: {opens} "\\n" ({names}) "\\n" {closes}'
    is_xml = notation is ToolNotation.XML
    write = functools.partial(xml_tool, finder=TypeFinder()) if is_xml else _hermes_tool
    for index, tool in enumerate(tools):
        yield from write(tool, index)


def _hermes_tool(tool: Tool, index: int) -> list[str]:
    head = json.dumps(f'{{"name": "{tool.name}", "arguments": ')
    schema: dict[str, Any] = json.loads(tool.enforced) if tool.enforced else {}
    return [
        f't{index}: {head} a{index} "}}"',
        f"a{index}: {json_rule(schema | {'type': 'object'})}",
    ]


def _form(constraint: Constraint) -> list[str]:
    """The rule of a form that the request has itself."""
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return [f"form: {json_rule({'type': 'object'})}"]
        case ConstraintKind.JSON_SCHEMA:
            return [f"form: {json_rule(json.loads(constraint.text))}"]
        case ConstraintKind.CHOICES:
            values = " | ".join(
                json.dumps(value, ensure_ascii=False) for value in constraint.values
            )
            return [f"form: {values}"]
        case ConstraintKind.REGEX | ConstraintKind.LARK:
            raise UnsupportedParameterError(
                f"constraint has the kind {constraint.kind.value}, which is not supported beside tools: leave the tools"
                " out, or set tool_choice to none.",
                field="spec.constraint",
            )
