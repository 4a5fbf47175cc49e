"""Validates tools, the choice among them and earlier calls, and converts them to the domain's."""

from __future__ import annotations

from collections.abc import Sequence
import json
import re
from typing import Any, Final

from inference_service.domain import EFFORTS, Tool, ToolCall, ToolChoice, ToolMode
from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.field_checks import check_bytes, check_count, quoted
from inference_service.grpc_api.json_schema import checked_schema
from inference_service.grpc_api.schema_proofs import shared_steps
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.limits import MAX_TOOLS


_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MODES: Final = {
    message_pb.TOOL_CHOICE_MODE_UNSPECIFIED: ToolMode.AUTO,
    message_pb.TOOL_CHOICE_MODE_AUTO: ToolMode.AUTO,
    message_pb.TOOL_CHOICE_MODE_NONE: ToolMode.NONE,
    message_pb.TOOL_CHOICE_MODE_REQUIRED: ToolMode.REQUIRED,
}
_MAX_SCHEMA_BYTES: Final = 2**16
_MAX_TOTAL_BYTES: Final = 2**20
_MAX_CALL_ID_BYTES: Final = 256
_MAX_CALL_VALUES: Final = 2**18
_MAX_DEPTH: Final = 64
_TOO_DEEP: Final = f"is nested more than {_MAX_DEPTH} deep"


def tools_of(tools: Sequence[message_pb.Tool]) -> tuple[Tool, ...]:
    """Validates the tools of a request.

    Raises:
        InvalidArgumentError: A field is invalid; `field` is its path, beginning with `spec.tools`.
    """
    check_count(tools, MAX_TOOLS, "spec.tools")
    total = sum(len(t.description.encode()) + len(t.parameters_json_schema.encode()) for t in tools)
    if total > _MAX_TOTAL_BYTES:
        raise InvalidArgumentError(
            f"tools have {total} bytes of descriptions and schemas, but at most {_MAX_TOTAL_BYTES} are allowed.",
            field="spec.tools",
        )
    names: set[str] = set()
    for index, tool in enumerate(tools):
        path = f"spec.tools[{index}]"
        _check_name(tool.name, f"{path}.name")
        if tool.name in names:
            raise InvalidArgumentError(
                f"name is {quoted(tool.name)}, as that of an earlier tool, but names must be unique.",
                field=f"{path}.name",
            )
        names.add(tool.name)
        _check_schema(tool.parameters_json_schema, f"{path}.parameters_json_schema")
    with shared_steps():
        return tuple(
            Tool(
                name=tool.name,
                description=tool.description,
                parameters=tool.parameters_json_schema.strip(),
                strict=tool.strict,
                enforced=_enforced(tool, f"spec.tools[{index}].parameters_json_schema"),
            )
            for index, tool in enumerate(tools)
        )


def _enforced(tool: message_pb.Tool, field: str) -> str:
    """The schema if a grammar can enforce it, which that of a strict tool must be."""
    if not tool.parameters_json_schema.strip():
        return ""
    try:
        return checked_schema(tool.parameters_json_schema, field)
    except InvalidArgumentError:
        if tool.strict:
            raise
        return ""


def tool_choice(choice: message_pb.ToolChoice, tools: Sequence[Tool]) -> ToolChoice:
    """Validates the choice among tools.

    Args:
        choice: The choice.
        tools: The tools of the request.

    Raises:
        InvalidArgumentError: It names a tool that is not in `tools`, or requires one where there is none.
    """
    mode = _MODES.get(choice.mode)
    if mode is None:
        raise InvalidArgumentError(
            f"mode is {choice.mode}, but must be TOOL_CHOICE_MODE_AUTO, TOOL_CHOICE_MODE_NONE or"
            " TOOL_CHOICE_MODE_REQUIRED.",
            field="spec.tool_choice.mode",
        )
    allowed = tuple(dict.fromkeys(choice.allowed_names))
    for name in allowed:
        _check_declared(name, tools, "spec.tool_choice.allowed_names")
    if choice.WhichOneof("choice") == "function_name":
        field = "spec.tool_choice.function_name"
        name = choice.function_name
        _check_declared(name, tools, field)
        if allowed and name not in allowed:
            raise InvalidArgumentError(
                f"function_name is {quoted(name)}, which is not one of allowed_names.", field=field
            )
        return ToolChoice(mode=ToolMode.REQUIRED, names=(name,), parallel=False)
    if mode is ToolMode.REQUIRED and not tools:
        raise InvalidArgumentError(
            "mode requires a call, but the request has no tools.",
            field="spec.tool_choice.mode",
        )
    parallel = choice.parallel if choice.HasField("parallel") else True
    return ToolChoice(mode=mode, names=allowed, parallel=parallel)


def tool_call(call: message_pb.ToolCall, path: str) -> ToolCall:
    """Validates a call in an earlier answer.

    Raises:
        InvalidArgumentError: A field is invalid; `field` is its path, which begins with `path`.
    """
    check_bytes(call.id, _MAX_CALL_ID_BYTES, f"{path}.id")
    _check_name(call.name, f"{path}.name")
    _, problem = _parsed(call.arguments_json)
    # What is no JSON is rendered as it is: a model may have written it.
    if problem == _TOO_DEEP:
        raise InvalidArgumentError(f"arguments_json {problem}.", field=f"{path}.arguments_json")
    return ToolCall(name=call.name, arguments=call.arguments_json)


def check_calls(messages: Sequence[message_pb.Message]) -> None:
    """Refuses calls whose arguments have so many values that parsing them would stop all other calls.

    Raises:
        InvalidArgumentError: There are too many.
    """
    calls = (call for message in messages for call in message.tool_calls)
    texts = (call.arguments_json for call in calls)
    values = sum(text.count(mark) for text in texts for mark in "[{,")
    if values > _MAX_CALL_VALUES:
        raise InvalidArgumentError(
            f"The arguments_json of all tool calls have {values} brackets and commas, but at most {_MAX_CALL_VALUES}"
            " are allowed.",
            field="spec.messages",
        )


def reasoning_effort(effort: str) -> str:
    """Validates a reasoning effort.

    Raises:
        InvalidArgumentError: It is none.
    """
    if effort and effort not in EFFORTS:
        raise InvalidArgumentError(
            f"reasoning_effort is {quoted(effort)}, but must be one of {', '.join(EFFORTS)}.",
            field="spec.template.reasoning_effort",
        )
    return effort


def _check_name(name: str, field: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"name is {quoted(name)}, but must have 1 to 64 letters, digits, '_' and '-'.",
            field=field,
        )


def _check_declared(name: str, tools: Sequence[Tool], field: str) -> None:
    if name not in {tool.name for tool in tools}:
        raise InvalidArgumentError(
            f"{field.rpartition('.')[2]} has {quoted(name)}, but tools has no function of this name.",
            field=field,
        )


def _check_schema(text: str, field: str) -> None:
    check_bytes(text, _MAX_SCHEMA_BYTES, field)
    if not text.strip():
        return
    schema, problem = _parsed(text)
    if not problem and not isinstance(schema, dict):
        problem = "is not a JSON object"
    if problem:
        raise InvalidArgumentError(
            f"parameters_json_schema {problem}: {quoted(text)}.", field=field
        )


def _parsed(text: str) -> tuple[Any, str]:
    """The value of a JSON text, and what is wrong with it."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None, "is no JSON"
    if _depth_exceeds(value, _MAX_DEPTH):
        return value, _TOO_DEEP
    return value, ""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _depth_exceeds(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        inner = [
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        ]
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True
