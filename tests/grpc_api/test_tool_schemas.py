"""Schemas of tools that no grammar can enforce: their tools may be called with any object, unless they are strict."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from inference_service.backend import tool_forms
from inference_service.constraint import Constraint
from inference_service.text.tool_grammar import tool_constraint
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.grpc_api.asking import refusal, spec_of
from tests.grpc_api.conftest import Service


REQUIRED = message_pb.ToolChoice(mode=message_pb.TOOL_CHOICE_MODE_REQUIRED)
NAMED = message_pb.ToolChoice(function_name="bad")
MARK = "the schema of bad"
EXPLODING = {"type": "integer", "multipleOf": 99999989}

BAD: dict[str, dict[str, Any]] = {
    "alternatives that overlap": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "look-ahead": {"type": "string", "pattern": "^(?=a)b"},
    "a word boundary": {"type": "string", "pattern": r"\bfoo\b"},
    "no regular expression": {"type": "string", "pattern": "["},
    "an unknown type": {"type": "any"},
    "another unknown type": {"type": "File"},
    "no reference": {"$ref": "#/definitions/Nope"},
    "no anchor": {"$ref": "#nope"},
    "a number as text": {"type": "integer", "minimum": "1"},
    "no multiple": {"type": "integer", "multipleOf": 0},
    "a contradiction": {"type": "integer", "minimum": 5, "maximum": 3},
    "nothing": {"enum": []},
    "required as text": {"type": "object", "required": "a"},
    "properties as a list": {"type": "object", "properties": []},
    "a reference to itself": {"$ref": "#/properties/p"},
    "too much": EXPLODING,
    "a keyword": {"not": {"const": 1}},
}


def tool(name: str, schema: object = None, *, strict: bool = False) -> message_pb.Tool:
    parameters = {
        "type": "object",
        "properties": {"p": schema if schema is not None else {"const": f"arguments of {name}"}},
        "required": ["p"],
        "description": MARK if schema is not None else "",
    }
    return message_pb.Tool(name=name, parameters_json_schema=json.dumps(parameters), strict=strict)


async def form_of(service: Service, spec: chat_pb.ChatCompletionSpec) -> str:
    """The grammar that the engine gets."""
    await service.create(spec)
    constraint = service.engine.requests[-1].constraint
    assert constraint is not None
    return constraint.text


async def test_a_tool_whose_schema_cannot_be_compiled_takes_any_object(service: Service) -> None:
    for case, schema in BAD.items():
        bad, good = tool("bad", schema), tool("good")
        ways: list[dict[str, Any]] = [
            {"tools": [bad, good], "tool_choice": REQUIRED},
            {"tools": [bad], "tool_choice": NAMED},
            {"tools": [good, bad], "constraint": sampling_pb.Constraint(json_object=True)},
        ]
        for fields in ways[: 3 if case == "an unknown type" else 1]:
            text = await form_of(service, spec_of("x", **fields))
            assert '\\"bad\\"' in text, case
            assert MARK not in text, case
            assert ("arguments of good" in text) is (good in fields["tools"]), case


async def test_the_error_of_a_strict_tool_names_it(service: Service) -> None:
    for case, schema in BAD.items():
        tools = [tool("good"), tool("other", {"type": "any"}), tool("bad", schema, strict=True)]
        got = await refusal(service.create(spec_of("x", tools=tools, tool_choice=REQUIRED)))
        assert got.field == "spec.tools[2].parameters_json_schema", case
        assert got.message.startswith("parameters_json_schema "), case


async def test_one_trial_where_all_schemas_are_good(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_forms, "_tools_that_compile", None)
    text = await form_of(service, spec_of("x", tools=[tool("a"), tool("b")], tool_choice=REQUIRED))
    assert "arguments of a" in text
    assert "arguments of b" in text


@pytest.mark.parametrize("max_cpu_s", [0.0, 2.0])
async def test_forms_are_written_in_threads_while_there_is_time_to_try_them(
    service: Service, monkeypatch: pytest.MonkeyPatch, max_cpu_s: float
) -> None:
    """A small schema may take long, in which the event loop answers the others."""
    threads: list[str] = []

    def written(*arguments: Any) -> Constraint | None:
        threads.append(threading.current_thread().name)
        return tool_constraint(*arguments)

    monkeypatch.setattr(tool_forms, "tool_constraint", written)
    monkeypatch.setattr(tool_forms, "_MAX_CPU_S", max_cpu_s)
    tools = [tool("a"), tool("b", {"type": "any"}), tool("c")]
    text = await form_of(service, spec_of("x", tools=tools, tool_choice=REQUIRED))
    assert MARK not in text
    assert ("arguments of a" in text) is (max_cpu_s > 0)
    assert len(threads) == (1 + 3 + 1 if max_cpu_s else 1 + 1)  # of all, of each, of what is left
    assert all(name.startswith("short-prompts") for name in threads)


async def test_tools_that_ask_for_no_form_wait_for_no_thread(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool_forms, "tool_constraint", None)
    await service.create(spec_of("x", tools=[tool("a")]))
    assert service.engine.requests[-1].constraint is None


@pytest.mark.full
async def test_the_time_for_trials_of_a_request_is_bounded(service: Service) -> None:
    """Each of these schemas takes a second alone; what is not tried is not enforced."""
    slow = [tool(f"f{n}", EXPLODING | {"multipleOf": 99999989 + n}) for n in range(6)]
    tools = [*slow, tool("good", strict=True)]
    text = await form_of(service, spec_of("x", tools=tools, tool_choice=REQUIRED))
    assert MARK not in text
    assert "arguments of good" in text
    # Of all, of the strict one, of the first two of the others, and of what is left.
    assert len(service.backend._constraints._verdicts) == 5


async def test_the_form_of_the_request_itself_is_not_given_up(service: Service) -> None:
    form = sampling_pb.Constraint(json_schema='{"type": "string", "pattern": "["}')
    got = await refusal(service.create(spec_of("x", tools=[tool("a")], constraint=form)))
    assert got.field == "spec.constraint"
