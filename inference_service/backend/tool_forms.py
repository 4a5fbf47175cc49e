"""The form of an answer with calls, as far as the compiler of grammars takes the schemas of the tools."""

from __future__ import annotations

from dataclasses import replace
import time
from typing import Final

from inference_service.backend.prompts import Prompts
from inference_service.backend.served_model import Model
from inference_service.constraint import Constraint
from inference_service.domain import ChatRequest, Request, Tool, ToolChoice, ToolMode
from inference_service.grammar.checker import ConstraintChecker, refuse
from inference_service.text.tool_grammar import tool_constraint, without_schemas


_ONE_CALL: Final = ToolChoice(mode=ToolMode.REQUIRED)
_MAX_CPU_S: Final = 2.0
"""CPU time for trials of single tools in a request, forms included: twice as much as for one constraint."""
_LEAST_CPU_S: Final = 0.01
"""What a trial costs the processes around it."""


class FormWriter:
    """Writes the forms that the tools of a request ask for, in threads: to read their schemas may take long.

    Attributes:
        cpu_s: The CPU time that it has taken so far, in seconds.

    Args:
        model: The model.
        prompts: Has the threads.
        caller: Who asks; callers take turns.
    """

    def __init__(self, model: Model, prompts: Prompts, caller: str) -> None:
        self.cpu_s = 0.0
        self._model = model
        self._prompts = prompts
        self._caller = caller

    async def write(self, request: ChatRequest) -> Constraint:
        """The form that the tools of a request ask for, which must ask for one; see `tool_constraint`."""
        characters = sum(len(tool.enforced) for tool in request.tools)
        return await self._prompts.run(characters, self._caller, lambda: self._written(request))

    def _written(self, request: ChatRequest) -> Constraint:
        begin_s = time.thread_time()
        try:
            form = tool_constraint(request, self._model.abilities, self._model.tokenizer)
        finally:
            self.cpu_s += time.thread_time() - begin_s
        assert form is not None
        return form


def form_field(request: Request) -> str:
    """The field that errors about the form name, which are not about one tool."""
    return "spec.tools" if request.constraint is None else "spec.constraint"


async def tried_form(
    form: Constraint,
    request: ChatRequest,
    writer: FormWriter,
    checker: ConstraintChecker,
    caller: str,
) -> Constraint:
    """A form of answers that can be compiled: where a schema prevents that, its tool may be called with any object.

    All schemas are tried together; only where that fails, one by one, to find out which of them are the reason.

    Args:
        form: The form that the tools of the request ask for.
        request: The request.
        writer: Writes its forms.
        checker: Tries constraints.
        caller: Who asks; callers take turns.

    Raises:
        InvalidArgumentError: The schema of a strict tool cannot be compiled, or the request's own form.
        EngineUnavailableError: It cannot be tried now.
    """
    if (await checker.verdict(form, caller)).passed:
        return form
    tools = await _tools_that_compile(request, writer, checker, caller)
    form = await writer.write(replace(request, tools=tools))
    if not (await checker.verdict(form, caller)).passed:
        form = await writer.write(replace(request, tools=without_schemas(tools)))
        await checker.check(form, caller, field=form_field(request))
    return form


async def _tools_that_compile(
    request: ChatRequest, writer: FormWriter, checker: ConstraintChecker, caller: str
) -> tuple[Tool, ...]:
    """The tools without the schemas that cannot be compiled, or for which no time is left; strict tools come first."""
    tools = list(request.tools)
    names = request.tool_choice.names or [tool.name for tool in tools]
    asked = [index for index, tool in enumerate(tools) if tool.enforced and tool.name in names]
    left_s = _MAX_CPU_S
    for index in sorted(asked, key=lambda index: not tools[index].strict):
        tool = tools[index]
        passed = False
        if left_s > 0:
            begun_s = writer.cpu_s
            alone = replace(request, tools=(tool,), tool_choice=_ONE_CALL, constraint=None)
            verdict = await checker.verdict(await writer.write(alone), caller)
            left_s -= max(verdict.cpu_s, _LEAST_CPU_S) + writer.cpu_s - begun_s
            if tool.strict:
                field = f"spec.tools[{index}].parameters_json_schema"
                refuse(verdict, "parameters_json_schema", field)
            passed = verdict.passed
        if not tool.strict and not passed:
            tools[index] = replace(tool, enforced="")
    return tuple(tools)
