"""Writes the grammar of a tool call in XML, as Qwen3.5 is trained to write it: parameters in the order of the schema.

What is no text is JSON. Text ends at its closing tag, so that no part of a schema but its choices can be enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import functools
import json
from typing import Any, Final

from inference_service.domain import Tool
from inference_service.errors import UnsupportedParameterError
from inference_service.text.output.xml_call import declared_types


_JSON_STYLE: Final[Mapping[str, Any]] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}
_CLOSE: Final = "\n</parameter>\n"
_OF_TEXT: Final = ("pattern", "format", "minLength", "maxLength", "const")
_OF_OBJECT: Final = (
    *("anyOf", "oneOf", "allOf", "patternProperties", "minProperties", "maxProperties", "enum"),
)
"""Keywords that are not enforced; a strict tool must not have them."""
_ALL_SCHEMAS, _FEW_SCHEMAS = 20_000, 64
"""Schemas that are looked at for the types of all properties of all tools, but at least so many for each property."""

TypesOf = Callable[[str], set[str]]
"""Tells the types of a property."""


class TypeFinder:
    """Finds the types of properties of the tools of one grammar, in a bounded number of steps."""

    def __init__(self) -> None:
        self._left = _ALL_SCHEMAS

    def types_of(self, properties: Mapping[str, Any], root: Mapping[str, Any]) -> TypesOf:
        """Tells the types of properties of one tool, each of which is looked at once."""
        share = _ALL_SCHEMAS // max(1, len(properties))

        def types_of(key: str) -> set[str]:
            most = max(_FEW_SCHEMAS, min(share, self._left))
            types, left = declared_types(properties[key], root, most)
            self._left -= most - left
            return types

        return functools.cache(types_of)


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of a schema as a rule of a grammar."""
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_STYLE}, ensure_ascii=False)}"


def xml_tool(tool: Tool, index: int, finder: TypeFinder) -> Iterator[str]:
    """The rules of a call, of which the first is `t` and the index.

    Args:
        tool: The tool.
        index: Its index in the grammar.
        finder: That of the grammar.

    Raises:
        UnsupportedParameterError: The tool is strict, and a part of its schema cannot be enforced.
    """
    schema: dict[str, Any] = json.loads(tool.enforced) if tool.enforced else {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    types_of = finder.types_of(properties, schema)
    if tool.strict:
        _refuse_unenforced(tool, schema, properties, types_of)
    head, name = json.dumps(f"<function={tool.name}>\n"), f"t{index}"
    if not properties:
        closed = schema.get("additionalProperties") is False
        more = "" if closed else f"({name}_any)* "
        yield f'{name}: {head} {more}"</function>"'
        if not closed:
            yield f'{name}_any: "<parameter=" /[A-Za-z0-9_.-]+/ ">\\n" {name}_text'
            yield _text_rule(f"{name}_text")
        return
    listed = schema.get("required")
    required = {key for key in listed if isinstance(key, str)} if isinstance(listed, list) else ()
    parts = [
        f"{name}_{number}{'' if key in required else '?'}" for number, key in enumerate(properties)
    ]
    yield f'{name}: {head} {" ".join(parts)} "</function>"'
    for number, (key, value) in enumerate(properties.items()):
        yield from _parameter(f"{name}_{number}", key, value, schema, types_of(key))


def _parameter(
    part: str, key: str, schema: object, root: Mapping[str, Any], types: set[str]
) -> Iterator[str]:
    head = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
    choices = schema.get("enum") if isinstance(schema, dict) else None
    if isinstance(choices, list) and all(isinstance(choice, str) for choice in choices):
        values = (json.dumps(choice + _CLOSE, ensure_ascii=False) for choice in choices)
        yield f"{part}: {head} ({' | '.join(values)})"
    elif not types or "string" in types or not isinstance(schema, dict):
        yield f"{part}: {head} {part}_text"
        yield _text_rule(f"{part}_text")
    else:
        definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}
        yield f"{part}: {head} {part}_json {json.dumps(_CLOSE)}"
        yield f"{part}_json: {json_rule(definitions | schema)}"


def _text_rule(name: str) -> str:
    return f"{name}[suffix={json.dumps(_CLOSE)}]: /(?s:.*)/"


def _refuse_unenforced(
    tool: Tool, schema: Mapping[str, Any], properties: Mapping[str, Any], types_of: TypesOf
) -> None:
    found = [keyword for keyword in _OF_OBJECT if keyword in schema]
    for key, value in properties.items():
        if isinstance(value, dict) and "string" in types_of(key):
            found += [f"properties.{key}.{keyword}" for keyword in _OF_TEXT if keyword in value]
    if found:
        raise UnsupportedParameterError(
            f"tools has the strict function {tool.name}, whose schema uses {found[0]}, which cannot be enforced in the"
            " notation of this model.",
            field="spec.tools",
        )
