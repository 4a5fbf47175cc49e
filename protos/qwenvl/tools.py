"""Tools that the model may call, calls in answers, and their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import json
import reprlib
from typing import Any, Final

from qwenvl.fields import built
from qwenvl.inference.v1 import message_pb2 as message_pb


_MODES: Final = {
    "auto": message_pb.TOOL_CHOICE_MODE_AUTO,
    "none": message_pb.TOOL_CHOICE_MODE_NONE,
    "required": message_pb.TOOL_CHOICE_MODE_REQUIRED,
}


def tool(
    name: str,
    description: str = "",
    parameters: Mapping[str, Any] | str | None = None,
    *,
    strict: bool | None = None,
) -> message_pb.Tool:
    """A function that the model may call.

    Args:
        name: Its name: at most 64 letters, digits, `_` and `-`.
        description: What it does, for the model to read.
        parameters: The JSON schema of its arguments, as a mapping or as text; None = any object.
        strict: The arguments of every call match the schema.

    Raises:
        TypeError: A value has another type.
        ValueError: The parameters are no JSON.
    """
    if isinstance(parameters, Mapping):
        try:
            parameters = json.dumps(parameters, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"parameters is {reprlib.repr(parameters)}: {error}") from None
    fields = {"name": name, "description": description, "parameters": parameters, "strict": strict}
    return built(message_pb.Tool, fields, {"parameters": "parameters_json_schema"})


def arguments_of(call: message_pb.ToolCall) -> dict[str, Any]:
    """The arguments of a call.

    Raises:
        TypeError: It is no call of an answer.
        ValueError: They are no JSON object, as those of an answer that was cut off may be.
    """
    if not isinstance(call, message_pb.ToolCall):
        raise TypeError(
            f"call is {reprlib.repr(call)}, but must be one of the tool_calls of an answer"
        )
    value = json.loads(call.arguments_json or "{}")
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of {call.name} are {reprlib.repr(value)}, no object")  # noqa: TRY004 - a value
    return value


def tool_choice(
    choice: str | None, allowed: Sequence[str] | None, parallel: bool | None
) -> message_pb.ToolChoice:
    """The choice among tools.

    Args:
        choice: `auto`, `none`, `required`, or the name of the function that must be called; None = not given.
        allowed: The names of the functions that may be called; None = all.
        parallel: One answer may have several calls; None = not given.

    Raises:
        TypeError: A value has another type.
    """
    if isinstance(allowed, (str, bytes)):
        raise TypeError(f"allowed_tools is {reprlib.repr(allowed)}: expected a list of names")
    fields: dict[str, Any] = {"allowed_tools": allowed, "parallel_tool_calls": parallel}
    if isinstance(choice, str) and choice in _MODES:
        fields["mode"] = _MODES[choice]
    else:
        fields["tool_choice"] = choice
    names = {
        "allowed_tools": "allowed_names",
        "parallel_tool_calls": "parallel",
        "tool_choice": "function_name",
    }
    return built(message_pb.ToolChoice, fields, names)


def check_tools(tools: object) -> list[Any]:
    """The tools of an option.

    Raises:
        TypeError: One is no tool.
    """
    found = list(tools) if isinstance(tools, Iterable) and not isinstance(tools, str) else [tools]
    if isinstance(tools, message_pb.Tool) or any(not isinstance(t, message_pb.Tool) for t in found):
        raise TypeError(f"tools is {reprlib.repr(tools)}: expected a list of tool(...)")
    return found
