"""Reads the input of `/v1/decisions`: a text, or messages and the calls and results of tools.

Calls and results are part of what is judged, not of a dialogue with the model: they are written as text, so that every
chat format has a place for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid
from rest_adapter.json_text import shown
from rest_adapter.openai.content import Content, Text, read_content, read_item
from rest_adapter.openai.decisions.json_part import read_json_part
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import check_length, wrong


_ROLES: Final = {
    "user": message_pb.ROLE_USER,
    "system": message_pb.ROLE_SYSTEM,
    "developer": message_pb.ROLE_SYSTEM,
    "assistant": message_pb.ROLE_ASSISTANT,
}
_CALLS: Final = {"function_call": "arguments", "custom_tool_call": "input"}
"""The types of calls, and the field with what was passed."""
_RESULTS: Final = {
    "function_call_output": "function_call",
    "custom_tool_call_output": "custom_tool_call",
}
"""The types of results, and those of their calls."""
_TYPES: Final = ("message", *_CALLS, *_RESULTS)
_MAX_NAME_CHARS: Final = 256
"""Each result of a call repeats the name of the call, and 20,000 results one of a megabyte."""

_IGNORED: Final = ("phase", "status", "id", "namespace")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One message of the input.

    Attributes:
        role: Its role in the contract.
        contents: Its parts.
        path: Its path in the JSON.
    """

    role: message_pb.Role
    contents: tuple[Content, ...]
    path: str


def read_input(value: object) -> tuple[list[Evidence], list[str]]:
    """Reads `input`.

    Returns:
        At least one message, and the paths of unknown fields.

    Raises:
        ApiError: It is empty or something else, or an item is invalid; the error names the field.
    """
    if not isinstance(value, str | list):
        raise wrong("input", value, "text or a list of messages, calls and results")
    if not value:
        raise invalid(f"'input' is {shown(value)}, but text or a message is required.", "input")
    if isinstance(value, str):
        return [Evidence(message_pb.ROLE_USER, (Text(value, "input"),), "input")], []
    unknown: list[str] = []
    calls: dict[tuple[str, str], str] = {}
    evidence = []
    for index, item in enumerate(value):
        path = f"input[{index}]"
        if not isinstance(item, dict):
            raise wrong(path, item, "an object")
        fields = Fields(item, path)
        kind = _type_of(fields)
        if kind == "message":
            message, names = _message(fields)
        elif kind in _CALLS:
            message, names = _call(fields, kind, calls)
        else:
            message, names = _result(fields, kind, calls)
        evidence.append(message)
        unknown += names
    return evidence, unknown


def read_parts(value: object, path: str) -> tuple[list[Content], list[str]]:
    """Reads texts, images and JSON: a text or a list of parts; errors as `read_input`."""
    if not isinstance(value, list):
        return read_content(value, path)
    contents: list[Content] = []
    unknown: list[str] = []
    for index, item in enumerate(value):
        where = f"{path}[{index}]"
        if isinstance(item, dict) and item.get("type") == "input_json":
            fields = Fields(item, where)
            contents.append(read_json_part(fields))
            unknown += fields.unknown(("data",))
            continue
        parts, names = read_item(item, where)
        contents += parts
        unknown += names
    return contents, unknown


def _type_of(item: Fields) -> str:
    kind = item.values.get("type")
    if kind is None and "role" in item.values:
        return "message"
    if kind is None:
        path = item.path_of("type")
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise wrong(item.path_of("type"), kind, f"one of: {', '.join(_TYPES)}")
    return kind


def _message(item: Fields) -> tuple[Evidence, list[str]]:
    role = item.values.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(item.path_of("role"), role, f"one of: {', '.join(_ROLES)}")
    path, content = item.path_of("content"), item.values.get("content")
    contents, unknown = read_parts(content, path)
    if not contents and role != "assistant":
        raise invalid(
            f"'{path}' is {shown(content)}, but a {role} message needs text or parts.", path
        )
    unknown += item.unknown(("role", "content", *_IGNORED))
    contents = contents or [Text("", path)]
    return Evidence(_ROLES[role], tuple(contents), item.path), unknown


def _call(item: Fields, kind: str, calls: dict[tuple[str, str], str]) -> tuple[Evidence, list[str]]:
    name, call_id = _required(item, "name"), _required(item, "call_id")
    check_length(item.path_of("name"), name, _MAX_NAME_CHARS)
    passed = _required(item, _CALLS[kind])
    calls[kind, call_id] = name
    text = Text(f"Call of {name}: {passed}", item.path_of(_CALLS[kind]))
    unknown = [*item.unknown(("name", "call_id", _CALLS[kind], *_IGNORED))]
    return Evidence(message_pb.ROLE_ASSISTANT, (text,), item.path), unknown


def _result(
    item: Fields, kind: str, calls: dict[tuple[str, str], str]
) -> tuple[Evidence, list[str]]:
    call_id = _required(item, "call_id")
    name = calls.get((_RESULTS[kind], call_id))
    if name is None:
        path = item.path_of("call_id")
        raise invalid(
            f"'{path}' is {shown(call_id)}, but no {_RESULTS[kind]} before it has that id.", path
        )
    path = item.path_of("output")
    if "output" not in item.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    contents, unknown = read_parts(item.values["output"], path)
    unknown += item.unknown(("call_id", "output", *_IGNORED))
    head = Text(f"Result of {name}:\n", path)
    return Evidence(message_pb.ROLE_USER, (head, *contents), item.path), unknown


def _required(item: Fields, name: str) -> str:
    path = item.path_of(name)
    if name not in item.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    value: Any = item.values[name]
    if not isinstance(value, str):
        raise wrong(path, value, "text")
    return value
