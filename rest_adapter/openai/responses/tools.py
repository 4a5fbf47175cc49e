"""Reads the tools of a response and the choice among them; writes both as OpenAI returns them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.limits import MAX_TOOLS
from rest_adapter.errors import invalid, unsupported
from rest_adapter.json_model import asks_for_nothing
from rest_adapter.json_text import shown
from rest_adapter.openai.functions import (
    CHOICES,
    OF_FUNCTIONS,
    OF_TOOLS_IGNORED,
    Function,
    read_function,
)
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import check_count, wrong


_MODES: Final = {
    "auto": message_pb.TOOL_CHOICE_MODE_AUTO,
    "none": message_pb.TOOL_CHOICE_MODE_NONE,
    "required": message_pb.TOOL_CHOICE_MODE_REQUIRED,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which functions may or must be called.

    Attributes:
        mode: `auto`, `none` or `required`; ignored if there is a name.
        name: The function that must be called.
        allowed: The functions that may be called; None = all.
    """

    mode: str = "auto"
    name: str | None = None
    allowed: tuple[str, ...] | None = None

    def document(self) -> str | dict[str, Any]:
        """The choice as OpenAI returns it."""
        if self.name is not None:
            return {"type": "function", "name": self.name}
        if self.allowed is None:
            return self.mode
        tools = [{"type": "function", "name": name} for name in self.allowed]
        return {"type": "allowed_tools", "mode": self.mode, "tools": tools}


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions of a request and the choice among them.

    Attributes:
        functions: The functions.
        choice: The choice.
        parallel: Whether one answer may have several calls; None = the service's default.
    """

    functions: tuple[Function, ...]
    choice: Choice
    parallel: bool | None

    def add_to(self, spec: chat_pb.ChatCompletionSpec) -> None:
        """Sets the tools of a request; without functions there is nothing to choose."""
        if not self.functions:
            return
        spec.tools.extend(function.tool() for function in self.functions)
        if self.choice.name is not None:
            spec.tool_choice.function_name = self.choice.name
        else:
            spec.tool_choice.mode = _MODES[self.choice.mode]
        spec.tool_choice.allowed_names.extend(self.choice.allowed or ())
        if self.parallel is not None:
            spec.tool_choice.parallel = self.parallel


def function_document(function: Function) -> dict[str, Any]:
    """A function as OpenAI returns it."""
    return {
        "type": "function",
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
        "strict": function.strict,
    }


def read_tools(tools: object, choice: object, *, parallel: bool | None) -> tuple[Tools, list[str]]:
    """Reads `tools` and `tool_choice`.

    Returns:
        The tools, and the paths of unknown fields.

    Raises:
        ApiError: One is invalid, is a tool that OpenAI hosts, or names a function that does not exist.
    """
    functions: list[Function] = []
    names: set[str] = set()
    unknown: list[str] = []
    if not asks_for_nothing(tools) and not isinstance(tools, list):
        raise wrong("tools", tools, "a list of tools")
    check_count("tools", tools, MAX_TOOLS)
    for index, document in enumerate(tools if isinstance(tools, list) else ()):
        function, unknown_in_tool = _read_function(document, f"tools[{index}]")
        if function.name in names:
            path = f"tools[{index}].name"
            raise invalid(f"'{path}' is {shown(function.name)}, the name of an earlier tool.", path)
        names.add(function.name)
        functions.append(function)
        unknown += unknown_in_tool
    chosen = _read_choice(choice, names)
    return Tools(tuple(functions), chosen, parallel), unknown


def _read_function(document: object, path: str) -> tuple[Function, list[str]]:
    if not isinstance(document, dict):
        raise wrong(path, document, "an object")
    fields = Fields(document, path)
    if document.get("type") != "function":
        kind = document.get("type")
        if not isinstance(kind, str):
            raise wrong(fields.path_of("type"), kind, "function")
        raise unsupported(fields.path_of("type"), kind, "only functions are")
    if "name" not in document and isinstance(document.get("function"), dict):
        message = f"'{path}.function' is the form of Chat Completions; here its fields belong in '{path}' itself."
        raise invalid(message, fields.path_of("function"))
    unknown = fields.unknown((*OF_FUNCTIONS, *OF_TOOLS_IGNORED))
    return read_function(fields), [*unknown]


def _read_choice(choice: object, names: set[str]) -> Choice:
    if asks_for_nothing(choice):
        return Choice()
    if isinstance(choice, str):
        return Choice(_mode(choice, "tool_choice", names))
    if not isinstance(choice, dict):
        raise wrong("tool_choice", choice, CHOICES)
    match choice.get("type"):
        case "auto" | "none" | "required" as mode:
            return Choice(_mode(mode, "tool_choice", names))
        case "function":
            return Choice(name=_known(choice.get("name"), "tool_choice.name", names))
        case "allowed_tools":
            return _read_allowed(choice, names)
        case str() as kind:
            raise unsupported("tool_choice.type", kind, "only function and allowed_tools are")
        case other:
            raise wrong("tool_choice.type", other, "function or allowed_tools")


def _read_allowed(choice: Mapping[str, Any], names: set[str]) -> Choice:
    mode, tools = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise wrong("tool_choice.mode", mode, "auto or required")
    if not isinstance(tools, list) or not tools:
        raise wrong("tool_choice.tools", tools, "a list of tools with at least one")
    allowed = []
    for index, tool in enumerate(tools):
        path = f"tool_choice.tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise wrong(path, tool, "an object with type function and a name")
        allowed.append(_known(tool.get("name"), f"{path}.name", names))
    return Choice(str(mode), allowed=tuple(dict.fromkeys(allowed)))


def _mode(mode: str, path: str, names: set[str]) -> str:
    if mode not in _MODES:
        raise wrong(path, mode, CHOICES)
    if mode == "required" and not names:
        raise invalid(f"'{path}' is \"required\", but there are no tools.", path)
    return mode


def _known(name: object, path: str, names: set[str]) -> str:
    if not isinstance(name, str):
        raise wrong(path, name, "the name of a tool")
    if name not in names:
        raise invalid(f"'{path}' is {shown(name)}, but there is no such tool in 'tools'.", path)
    return name
