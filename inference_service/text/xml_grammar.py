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


def json_rule(schema: Mapping[str, Any]) -> str:
    """JSON of a schema as a rule of a grammar."""
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_STYLE}, ensure_ascii=False)}"


def xml_tool(tool: Tool, index: int) -> list[str]:
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
        rules = [f'{name}: {head} {more}"</function>"']
        if not closed:
            rules.append(f'{name}_any: "<parameter=" /[A-Za-z0-9_.-]+/ ">\\n" {name}_text')
            rules.append(_text_rule(f"{name}_text"))
        return rules
    required = schema.get("required")
    required = required if isinstance(required, list) else []
    parts, rules = [], list[str]()
    for number, (key, value) in enumerate(properties.items()):
        part = f"{name}_{number}"
        parts.append(part if key in required else f"{part}?")
        rules += _parameter(part, key, value, schema)
    return [f'{name}: {head} {" ".join(parts)} "</function>"', *rules]


def _parameter(part: str, key: str, schema: object, root: Mapping[str, Any]) -> Iterator[str]:
    head, types = (
        json.dumps(f"<parameter={key}>\n", ensure_ascii=False),
        declared_types(schema, root),
    )
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
    for key, value in properties.items():
        if isinstance(value, dict) and "string" in declared_types(value, schema):
            found += [f"properties.{key}.{keyword}" for keyword in _OF_TEXT if keyword in value]
    if found:
        raise UnsupportedParameterError(
            f"tools has the strict function {tool.name}, whose schema uses {found[0]}, which cannot be enforced in the"
            " notation of this model.",
            field="spec.tools",
        )
