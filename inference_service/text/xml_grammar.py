"""Writes the grammar of a tool call in XML, as Qwen3.5 is trained to write it: parameters in the order of the schema.

What is no text is JSON. Text ends at its closing tag, so that no part of a schema but its choices can be enforced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
"""Schemas that are looked at for the types of all properties of a tool, but at least so many for each."""


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of a schema as a rule of a grammar."""
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_STYLE}, ensure_ascii=False)}"


def xml_tool(tool: Tool, index: int) -> Iterator[str]:
    """The rules of a call, of which the first is `t` and the index.

    Raises:
        UnsupportedParameterError: The tool is strict, and a part of its schema cannot be enforced.
    """
    schema: dict[str, Any] = json.loads(tool.enforced) if tool.enforced else {}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    if tool.strict:
        _refuse_unenforced(tool, schema, properties)
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
    most = _most_schemas(properties)
    for number, (key, value) in enumerate(properties.items()):
        yield from _parameter(f"{name}_{number}", key, value, schema, most)


def _most_schemas(properties: Mapping[str, Any]) -> int:
    """How many schemas to look at for the types of each property."""
    return max(_FEW_SCHEMAS, _ALL_SCHEMAS // len(properties))


def _parameter(
    part: str, key: str, schema: object, root: Mapping[str, Any], most: int
) -> Iterator[str]:
    head = json.dumps(f"<parameter={key}>\n", ensure_ascii=False)
    types = declared_types(schema, root, most)
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
    tool: Tool, schema: Mapping[str, Any], properties: Mapping[str, Any]
) -> None:
    found = [keyword for keyword in _OF_OBJECT if keyword in schema]
    most = _most_schemas(properties) if properties else 0
    for key, value in properties.items():
        if isinstance(value, dict) and "string" in declared_types(value, schema, most):
            found += [f"properties.{key}.{keyword}" for keyword in _OF_TEXT if keyword in value]
    if found:
        raise UnsupportedParameterError(
            f"tools has the strict function {tool.name}, whose schema uses {found[0]}, which cannot be enforced in the"
            " notation of this model.",
            field="spec.tools",
        )
