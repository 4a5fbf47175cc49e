"""The form of an answer with calls, as far as the compiler of grammars takes the schemas of the tools."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from inference_service.backend.served_model import Model
from inference_service.constraint import Constraint
from inference_service.domain import ChatRequest, Request, Tool, ToolChoice, ToolMode
from inference_service.grammar.checker import ConstraintChecker, refuse
from inference_service.text.tool_grammar import tool_constraint, without_schemas


_ONE_CALL: Final = ToolChoice(mode=ToolMode.REQUIRED)
_MAX_CPU_S: Final = 2.0
"""CPU time for trials of single tools in a request: twice as much as for one constraint."""
_LEAST_CPU_S: Final = 0.01
"""What a trial costs the processes around it."""


def form_field(request: Request) -> str:
    """The field that errors about the form name, which are not about one tool."""
    return "spec.tools" if request.constraint is None else "spec.constraint"


async def tried_form(
    form: Constraint, request: ChatRequest, model: Model, checker: ConstraintChecker, caller: str
) -> Constraint:
    """A form of answers that can be compiled: where a schema prevents that, its tool may be called with any object.

    All schemas are tried together; only where that fails, one by one, to find out which of them are the reason.

    Args:
        form: The form that the tools of the request ask for.
        request: The request.
        model: The model.
        checker: Tries constraints.
        caller: Who asks; callers take turns.

    Raises:
        InvalidArgumentError: The schema of a strict tool cannot be compiled, or the request's own form.
        EngineUnavailableError: It cannot be tried now.
    """

    def form_with(tools: tuple[Tool, ...]) -> Constraint:
        changed = replace(request, tools=tools)
        return tool_constraint(changed, model.abilities, model.tokenizer) or form

    if (await checker.verdict(form, caller)).passed:
        return form
    tools = await _tools_that_compile(request, model, checker, caller)
    form = form_with(tools)
    if not (await checker.verdict(form, caller)).passed:
        form = form_with(without_schemas(tools))
        await checker.check(form, caller, field=form_field(request))
    return form


async def _tools_that_compile(
    request: ChatRequest, model: Model, checker: ConstraintChecker, caller: str
) -> tuple[Tool, ...]:
    """The tools without the schemas that cannot be compiled, or for which no time is left; strict tools come first."""
    tools = list(request.tools)
    names = request.tool_choice.names or [tool.name for tool in tools]
    asked = [index for index, tool in enumerate(tools) if tool.enforced and tool.name in names]
    left_s = _MAX_CPU_S
    for index in sorted(asked, key=lambda index: not tools[index].strict):
        tool = tools[index]
        alone = replace(request, tools=(tool,), tool_choice=_ONE_CALL, constraint=None)
        form = tool_constraint(alone, model.abilities, model.tokenizer)
        assert form is not None
        verdict = await checker.verdict(form, caller) if left_s > 0 else None
        if verdict is not None:
            left_s -= max(verdict.cpu_s, _LEAST_CPU_S)
            if tool.strict:
                field = f"spec.tools[{index}].parameters_json_schema"
                refuse(verdict, "parameters_json_schema", field)
        if not tool.strict and (verdict is None or not verdict.passed):
            tools[index] = replace(tool, enforced="")
    return tuple(tools)
