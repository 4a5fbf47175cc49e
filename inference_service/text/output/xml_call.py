"""Reads tool calls in the notation of Qwen3.5: `<function=NAME>` with `<parameter=KEY>` elements, in `<tool_call>`.

A call is passed on when it is complete: before that, what looks like the end of a value may be a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import json
import re
from typing import Any, Final

from inference_service.text.output.call_reader import CallState, ReadCall, Reading
from inference_service.text.output.held import MAX_SPACE
from inference_service.text.output.json_text import to_json


OPEN_TAG: Final = "<tool_call>"
FUNCTION_TAG: Final = "<function="
_CLOSE_TAG: Final = "</tool_call>"
_CLOSE_FUNCTION: Final = "</function>"
_PARAMETER: Final = "<parameter="
_CLOSE_PARAMETER: Final = "</parameter>"
_SPACE: Final = " \t\r\n"
_TYPES: Final = ("null", "integer", "number", "boolean", "object", "array", "string")
"""In the order in which a value is tried."""
_INTEGER: Final = re.compile(r"[+-]?\d{1,400}", re.ASCII)
_MAX_SCHEMAS: Final = 2000
_COMBINATIONS: Final = ("anyOf", "oneOf", "allOf")


class XmlReader:
    """Reads one call.

    Args:
        names: The declared functions.
        schema_of: Tells the JSON schema of the arguments of one of them.
    """

    def __init__(
        self, names: Collection[str], schema_of: Callable[[str], Mapping[str, Any]]
    ) -> None:
        self._names = names
        self._schema_of = schema_of
        self._text = ""
        self._at = 0
        self._expects: Callable[[bool], bool] = self._function
        self._name = ""
        self._key = ""
        self._searched = 0
        self._begun: list[str] = []  # of a value, what cannot be a part of its end
        self._arguments: dict[str, Any] = {}
        self._result = CallState.OPEN

    def read(self, text: str, *, last: bool) -> Reading:
        """See `CallReader.read`."""
        self._text += text
        while self._result is CallState.OPEN and self._expects(last):
            pass
        reading = Reading(self._result)
        if self._result is CallState.DONE:
            reading.calls = [ReadCall(self._name, to_json(self._arguments))]
            reading.rest = self._text[self._at :]
        return reading

    def _function(self, last: bool) -> bool:
        """Expects the function's tag; this and the next methods return whether they have made a step."""
        del last
        if self._text.startswith(OPEN_TAG):
            self._at = len(OPEN_TAG)
        name = self._tag_value(FUNCTION_TAG)
        if name is None:
            return False
        if name not in self._names:
            self._result = CallState.BROKEN
            return False
        self._name, self._expects = name, self._parameter
        return True

    def _parameter(self, last: bool) -> bool:
        """Expects a parameter's tag or the end of the function."""
        del last
        behind = self._text[self._at :].lstrip(_SPACE)
        self._at = len(self._text) - len(behind)  # the space is not read again
        if behind.startswith(_CLOSE_FUNCTION):
            self._at = len(self._text) - len(behind) + len(_CLOSE_FUNCTION)
            self._expects = self._end
            return True
        if _CLOSE_FUNCTION.startswith(behind):
            return False
        key = self._tag_value(_PARAMETER)
        if key is None:
            return False
        self._key, self._expects, self._searched = key, self._value, self._at
        return True

    def _tag_value(self, tag: str) -> str | None:
        """Reads `<tag=VALUE>` behind white space; None = it is incomplete, or the call is broken."""
        behind = self._text[self._at :].lstrip(_SPACE)
        start = len(self._text) - len(behind)
        if not behind.startswith(tag):
            if not tag.startswith(behind) or start - self._at > MAX_SPACE:
                self._result = CallState.BROKEN
            return None
        end = self._text.find(">", start)
        line_end = self._text.find("\n", start)
        is_endless = end < 0 and len(behind) > MAX_SPACE
        if is_endless or (line_end >= 0 and not 0 <= end < line_end):
            self._result = CallState.BROKEN
        if end < 0 or self._result is CallState.BROKEN:
            return None
        self._at = end + 1
        return self._text[start + len(tag) : end].strip()

    def _value(self, last: bool) -> bool:
        """Expects the end of a value: a closing tag before the next parameter, or before the end."""
        end = self._text.find(_CLOSE_PARAMETER, self._searched)
        if end < 0:
            kept = max(self._searched, len(self._text) - len(_CLOSE_PARAMETER) + 1)
            self._begun.append(self._text[self._at : kept])
            self._text, self._at, self._searched = self._text[kept:], 0, 0
            return False
        behind = self._text[end + len(_CLOSE_PARAMETER) :].lstrip(_SPACE)
        if behind.startswith((_PARAMETER, _CLOSE_FUNCTION)):
            written = "".join((*self._begun, self._text[self._at : end]))
            written, self._begun = written.removeprefix("\n").removesuffix("\n"), []
            schema = self._schema_of(self._name)
            self._arguments[self._key] = converted(written, schema, self._key)
            self._at, self._expects = end + len(_CLOSE_PARAMETER), self._parameter
            return True
        self._searched = end
        is_near = len(self._text) - end <= MAX_SPACE
        if (
            not last
            and is_near
            and any(tag.startswith(behind) for tag in (_PARAMETER, _CLOSE_FUNCTION))
        ):
            return False
        self._searched = end + 1  # a part of the value
        return True

    def _end(self, last: bool) -> bool:
        """Expects the closing tag, which may be missing."""
        behind = self._text[self._at :].lstrip(_SPACE)
        if behind.startswith(_CLOSE_TAG):
            self._at = len(self._text) - len(behind) + len(_CLOSE_TAG)
        elif _CLOSE_TAG.startswith(behind):
            if not last and len(self._text) - self._at <= MAX_SPACE:
                return False
            if last:
                self._at = len(self._text)  # a tag that was cut
        self._result = CallState.DONE
        return False


def converted(text: str, schema: Mapping[str, Any], key: str) -> object:
    """A written value in a type that a schema of arguments declares for a key; the text itself if it has none."""
    properties = schema.get("properties")
    declared = properties.get(key) if isinstance(properties, Mapping) else None
    types, _ = declared_types(declared, schema)
    for name in _TYPES:
        if (
            name in types
            and name != "string"
            and (found := _read(text.strip(), name)) is not _NOTHING
        ):
            return found
    return text


def declared_types(
    schema: object, root: Mapping[str, Any], most: int = _MAX_SCHEMAS
) -> tuple[set[str], int]:
    """The types that a schema allows, also in its alternatives and behind references to `root`.

    Of more than `most` schemas, references, types and values, the rest is taken for a text.

    Returns:
        The types, and how many of `most` are left.
    """
    found: set[str] = set()
    seen: set[int] = set()  # schemas refer to themselves, and many times to each other
    waiting = [schema]
    while waiting:
        if most <= 0:
            return found | {"string"}, 0
        one = waiting.pop()
        most -= 1
        if isinstance(one, Mapping) and id(one) not in seen:
            seen.add(id(one))
            most -= _length(one)
            found |= _own_types(one) if most > 0 else set()
            waiting += _alternatives(one, root) if most > 0 else ()
    return (found, most) if most > 0 else (found | {"string"}, 0)


def _length(schema: Mapping[str, Any]) -> int:
    """What it takes to look at a schema, in others: long lists and references."""
    lists = (schema.get(keyword) for keyword in ("type", "enum", *_COMBINATIONS))
    reference = schema.get("$ref")
    length = len(reference) if isinstance(reference, str) else 0
    return sum(len(one) for one in lists if isinstance(one, list)) // 16 + length // 64


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    declared = schema.get("type")
    found = {declared} if isinstance(declared, str) else set[str]()
    if isinstance(declared, list):
        found |= {name for name in declared if isinstance(name, str)}
    if not found:
        values = schema.get("enum", [schema["const"]] if "const" in schema else [])
        found |= set(map(_type_of, values)) if isinstance(values, list) else set()
    return found


def _alternatives(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[object]:
    branches = [schema.get(keyword) for keyword in _COMBINATIONS]
    inner = [one for branch in branches if isinstance(branch, list) for one in branch]
    if isinstance(reference := schema.get("$ref"), str):
        inner.append(_at_pointer(root, reference))
    return inner


def _type_of(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds: dict[type, str] = {int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "string")


def _at_pointer(root: object, reference: str) -> object:
    """What a local reference such as `#/$defs/Point` points to; None = nothing."""
    if not reference.startswith("#/"):
        return root if reference == "#" else None
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        root = root.get(name) if isinstance(root, Mapping) else None
    return root


_NOTHING: Final = object()


def _read(text: str, kind: str) -> object:
    if kind == "null":
        return None if text in ("null", "None") else _NOTHING
    if kind == "boolean":
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), _NOTHING)
    if kind == "integer":
        return int(text) if _INTEGER.fullmatch(text) else _NOTHING
    try:
        value = json.loads(text)
        to_json(value)  # refuses infinities
    except (ValueError, RecursionError):
        return _NOTHING
    if isinstance(value, bool):
        return _NOTHING
    wanted: dict[str, tuple[type, ...]] = {
        "number": (int, float),
        "object": (dict,),
        "array": (list,),
    }
    return value if isinstance(value, wanted[kind]) else _NOTHING
