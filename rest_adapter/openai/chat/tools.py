"""Reads the tools of a chat, the choice among them, and calls in earlier answers.

Read without pydantic: clients write several forms of each, and an error must name the field as the caller wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import re
from typing import Any, Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.limits import MAX_TOOLS
from rest_adapter.errors import invalid, unsupported
from rest_adapter.json_model import asks_for_nothing, without_neutral_values
from rest_adapter.json_values import text_of
from rest_adapter.openai.functions import (
    CHOICES,
    OF_FUNCTIONS,
    OF_TOOLS_IGNORED,
    read_function,
    read_strict,
)
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import check_count, wrong


_MODES: Final = {
    "auto": message_pb.TOOL_CHOICE_MODE_AUTO,
    "none": message_pb.TOOL_CHOICE_MODE_NONE,
    "required": message_pb.TOOL_CHOICE_MODE_REQUIRED,
    "any": message_pb.TOOL_CHOICE_MODE_REQUIRED,
}
_TOOL_FIELDS: Final = {"parameters_json_schema": "parameters"}
_CALL_FIELDS: Final = {"arguments_json": "function.arguments", "name": "function.name"}
_TOOL_PATH: Final = re.compile(r"tools\[(\d+)\](?:\.(\w+))?$")
_CHOICE_PATHS: Final = {
    "tool_choice.function_name": "tool_choice",
    "tool_choice.mode": "tool_choice",
    "tool_choice.allowed_names": "tool_choice",
    "tool_choice.parallel": "parallel_tool_calls",
}
_LEGACY: Final = "send the functions as 'tools', and 'tool_choice'"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        tools: The tools.
        paths: For each, the path in the JSON of the object with its name.
        choice: The choice among them; None = the default.
        named: A call of one function is required.
    """

    tools: tuple[message_pb.Tool, ...] = ()
    paths: tuple[str, ...] = ()
    choice: message_pb.ToolChoice | None = None
    named: bool = False

    @property
    def required(self) -> bool:
        """Whether the answer has nothing but calls."""
        required = message_pb.TOOL_CHOICE_MODE_REQUIRED
        return self.named or (self.choice is not None and self.choice.mode == required)

    def add_to(self, spec: chat_pb.ChatCompletionSpec) -> None:
        """Sets the tools of a request."""
        spec.tools.extend(self.tools)
        if self.choice is not None:
            spec.tool_choice.CopyFrom(self.choice)

    def param(self, path: str) -> str | None:
        """The path in the JSON of a proto field of tools, such as `tools[0].name`; None = it is another field."""
        if path in _CHOICE_PATHS:
            return _CHOICE_PATHS[path]
        match = _TOOL_PATH.match(path)
        if match is None or int(match[1]) >= len(self.paths):
            return None
        where, name = self.paths[int(match[1])], match[2]
        return f"{where}.{_TOOL_FIELDS.get(name, name)}" if name else where


@dataclass(frozen=True, slots=True)
class Call:
    """A call in an earlier answer.

    Attributes:
        call: The call.
        path: Its path in the JSON.
        function_path: The path of the object with its name.
    """

    call: message_pb.ToolCall
    path: str
    function_path: str

    def param(self, name: str) -> str:
        """The path in the JSON of a field of the call."""
        inner = _CALL_FIELDS.get(name, "")
        if inner:
            return f"{self.function_path}.{inner.removeprefix('function.')}"
        return f"{self.path}.{name}" if name else self.path


def read_tools(values: Mapping[str, Any]) -> tuple[Tools, list[str]]:
    """Reads `tools`, `tool_choice` and `parallel_tool_calls`, and refuses `functions` and `function_call`.

    Args:
        values: The values of these fields of a request.

    Returns:
        The tools, and the paths of unknown fields.

    Raises:
        ApiError: One is invalid or not supported.
    """
    _refuse_legacy(values)
    documents = values.get("tools")
    if asks_for_nothing(documents):
        documents = []
    if not isinstance(documents, list):
        raise wrong("tools", documents, "a list of tools")
    check_count("tools", documents, MAX_TOOLS)
    tools, paths, unknown = [], [], list[str]()
    for index, document in enumerate(documents):
        tool, path, names = _read_tool(document, f"tools[{index}]")
        tools.append(tool)
        paths.append(path)
        unknown += names
    choice = _read_choice(values.get("tool_choice"))
    if values.get("parallel_tool_calls") is False and tools:
        choice.parallel = False
    if not tools and _is_neutral(choice):
        return Tools(), unknown
    named = choice.WhichOneof("choice") == "function_name"
    return Tools(tuple(tools), tuple(paths), choice, named), unknown


def _is_neutral(choice: message_pb.ToolChoice) -> bool:
    """Whether a choice without tools asks for nothing."""
    return (
        choice.WhichOneof("choice") != "function_name"
        and choice.mode != message_pb.TOOL_CHOICE_MODE_REQUIRED
        and not choice.allowed_names
    )


def _refuse_legacy(values: Mapping[str, Any]) -> None:
    if not asks_for_nothing(functions := values.get("functions")):
        raise unsupported("functions", functions, _LEGACY)
    choice = without_neutral_values(values.get("function_call"))
    if not asks_for_nothing(choice) and choice not in ("none", "auto"):
        raise unsupported("function_call", choice, _LEGACY)


def _read_tool(document: object, path: str) -> tuple[message_pb.Tool, str, list[str]]:
    """A tool, the path of the object with its name, and the paths of unknown fields."""
    outer, inner = _function_of(document, path)
    function = read_function(inner)
    # Some clients write it beside the function.
    tool, strict = function.tool(), bool(read_strict(outer)) or bool(function.strict)
    tool.strict = strict
    known = (*OF_FUNCTIONS, "function", *OF_TOOLS_IGNORED)
    unknown = [*outer.unknown(known), *(inner.unknown(known) if inner is not outer else ())]
    return tool, inner.path, unknown


def _function_of(document: object, path: str) -> tuple[Fields, Fields]:
    """A tool and its function, which in the form of Responses are the same object."""
    if not isinstance(document, dict):
        raise wrong(path, document, "an object")
    tool = Fields(document, path)
    kind = document.get("type", "function")
    if not isinstance(kind, str):
        raise wrong(tool.path_of("type"), kind, "function")
    if kind != "function":
        raise unsupported(tool.path_of("type"), kind, "only functions are")
    if "function" not in document and "name" in document:
        return tool, tool
    function = document.get("function")
    if not isinstance(function, dict):
        raise wrong(tool.path_of("function"), function, "an object")
    return tool, Fields(function, tool.path_of("function"))


def _read_choice(choice: object) -> message_pb.ToolChoice:
    if asks_for_nothing(without_neutral_values(choice)):
        return message_pb.ToolChoice()
    if isinstance(choice, str):
        if choice not in _MODES:
            raise wrong("tool_choice", choice, CHOICES)
        return message_pb.ToolChoice(mode=_MODES[choice])
    if not isinstance(choice, dict):
        raise wrong("tool_choice", choice, CHOICES)
    kind = choice.get("type", "function")
    if isinstance(kind, str) and kind in _MODES:
        parallel = choice.get("disable_parallel_tool_use")
        return message_pb.ToolChoice(mode=_MODES[kind], parallel=False if parallel else None)
    if kind == "function":
        return message_pb.ToolChoice(function_name=_named(choice, "tool_choice"))
    if kind == "allowed_tools":
        return _read_allowed(choice)
    if isinstance(kind, str):
        raise unsupported("tool_choice.type", kind, "only function and allowed_tools are")
    raise wrong("tool_choice.type", kind, "function or allowed_tools")


def _read_allowed(choice: Mapping[str, Any]) -> message_pb.ToolChoice:
    path = "tool_choice"
    if isinstance(choice.get("allowed_tools"), dict):  # else the form of Responses
        choice, path = choice["allowed_tools"], "tool_choice.allowed_tools"
    mode, tools = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise wrong(f"{path}.mode", mode, "auto or required")
    if not isinstance(tools, list) or not tools:
        raise wrong(f"{path}.tools", tools, "a list of tools with at least one")
    names = []
    for index, tool in enumerate(tools):
        where = f"{path}.tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type", "function") != "function":
            raise wrong(where, tool, "an object with type function and the name of a tool")
        names.append(_named(tool, where))
    return message_pb.ToolChoice(mode=_MODES[mode], allowed_names=names)


def _named(document: Mapping[str, Any], path: str) -> str:
    """The name of a function in `function`, or beside it in the form of Responses."""
    if "function" in document or "name" not in document:
        path += ".function"
        function = document.get("function")
        if not isinstance(function, dict):
            raise wrong(path, function, "an object with the name of a tool")
        document = function
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(f"{path}.name", name, "the name of a tool")
    return name


def read_calls(calls: object, legacy: object, path: str) -> tuple[list[Call], list[str]]:
    """Reads `tool_calls`, or the older `function_call`, of an earlier answer.

    Args:
        calls: The value of `tool_calls`.
        legacy: The value of `function_call`.
        path: The path of the message.

    Returns:
        The calls, and the paths of unknown fields.

    Raises:
        ApiError: One is invalid, or not the call of a function.
    """
    found: list[Call] = []
    unknown: list[str] = []
    if not asks_for_nothing(calls) and not isinstance(calls, list):
        raise wrong(f"{path}.tool_calls", calls, "a list of calls")
    for index, document in enumerate(calls if isinstance(calls, list) else ()):
        call, names = _read_call(document, f"{path}.tool_calls[{index}]")
        found.append(call)
        unknown += names
    if not found and not asks_for_nothing(without_neutral_values(legacy)):
        where = f"{path}.function_call"
        if not isinstance(legacy, dict):
            raise wrong(where, legacy, "an object")
        found.append(Call(_call_of(Fields(legacy, where), ""), where, where))
    return found, unknown


def _read_call(document: object, path: str) -> tuple[Call, list[str]]:
    if not isinstance(document, dict):
        raise wrong(path, document, "an object")
    outer = Fields(document, path)
    kind = document.get("type", "function")
    if kind != "function" and not asks_for_nothing(kind):
        if not isinstance(kind, str):
            raise wrong(outer.path_of("type"), kind, "function")
        raise unsupported(outer.path_of("type"), kind, "only calls of functions are")
    function = document.get("function")
    if not isinstance(function, dict):
        raise wrong(outer.path_of("function"), function, "an object")
    inner = Fields(function, outer.path_of("function"))
    call = _call_of(inner, outer.text("id") or "")
    unknown = [
        *outer.unknown(("id", "function", "index", "extra_content", "provider_specific_fields")),
        *inner.unknown(("name", "arguments")),
    ]
    return Call(call, path, inner.path), unknown


def _call_of(function: Fields, call_id: str) -> message_pb.ToolCall:
    name = function.text("name")
    if name is None:
        path = function.path_of("name")
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    arguments = function.values.get("arguments")
    if isinstance(arguments, dict):  # instead of its text
        arguments = text_of(arguments, function.path_of("arguments"))
    if not asks_for_nothing(arguments) and not isinstance(arguments, str):
        raise wrong(function.path_of("arguments"), arguments, "the text of a JSON object")
    return message_pb.ToolCall(id=call_id, name=name, arguments_json=arguments or "")
