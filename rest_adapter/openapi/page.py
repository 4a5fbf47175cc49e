"""Renders an OpenAPI document as a page without scripts, which works offline and under any policy."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
import hashlib
from html import escape
import json
from typing import Any, Final


STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
h2 { border-bottom: 1px solid; margin-top: 2rem; }
details { border: 1px solid #8886; border-radius: 6px; margin: .5rem 0; padding: .5rem .75rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, monospace; font-size: .875rem; }
pre { overflow-x: auto; padding: .75rem; background: #8882; border-radius: 6px; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid #8886; padding: .25rem .5rem; text-align: left; vertical-align: top; }
"""
_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""The content security policy: nothing but the style of this page."""
_PREFIX: Final = "#/components/schemas/"


def render_page(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document that `build_document` made."""
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    return "".join(
        (
            "<!doctype html>\n",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}: REST API</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body><main><h1>{title}: REST API</h1>",
            f"<p>{escape(document['info']['description'])}</p>",
            '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>',
            *_operations(document),
            "<h2>Schemas</h2>",
            *(
                _schema(name, schema)
                for name, schema in sorted(document["components"]["schemas"].items())
            ),
            "</main></body></html>\n",
        )
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for tag in document["tags"]:
        yield f"<h2>{escape(tag['name'])}</h2>"
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if operation["tags"] == [tag["name"]]:
                    yield _operation(path, method, operation, document)


def _operation(
    path: str, method: str, operation: Mapping[str, Any], document: Mapping[str, Any]
) -> str:
    head = f"<code><b>{method.upper()}</b> {escape(path)}</code> {escape(operation['summary'])}"
    parts = [f"<details><summary>{head}</summary>"]
    if not operation["security"]:
        parts.append("<p>Needs no key.</p>")
    if parameters := operation.get("parameters"):
        rows = [
            (f"<code>{escape(each['name'])}</code>", each["in"], escape(each["description"]))
            for each in parameters
        ]
        parts.append(_table(("parameter", "in", "meaning"), rows))
    if body := operation.get("requestBody"):
        content = body["content"]["application/json"]
        parts.append(f"<p>Body: {_type_of(content['schema'])}</p>")
        if "example" in content:
            example = json.dumps(content["example"], indent=2, ensure_ascii=False)
            parts.append(f"<pre>{escape(example)}</pre>")
    rows = []
    for status, response in operation["responses"].items():
        named = response
        if "$ref" in response:
            named = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
        kinds = "<br>".join(
            f"{escape(media_type)}: {_type_of(content['schema'])}"
            for media_type, content in named["content"].items()
        )
        rows.append((status, escape(named["description"]), kinds))
    parts.append(_table(("status", "meaning", "content"), rows))
    return "".join((*parts, "</details>"))


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    head = f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
    text = f"<p>{escape(schema.get('description', ''))}</p>"
    if "properties" not in schema:
        return f"{head}{text}<p>{_type_of(schema)}</p></details>"
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>",
            _type_of(inner),
            "required" if field in required else "",
        )
        for field, inner in schema["properties"].items()
    ]
    return f"{head}{text}{_table(('field', 'type', ''), rows)}</details>"


def _type_of(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to those that have a name."""
    if (reference := schema.get("$ref")) is not None:
        name = escape(str(reference).removeprefix(_PREFIX))
        return f'<a href="#{name}"><code>{name}</code></a>'
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(map(_type_of, schema[key])))
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    inner = schema.get("additionalProperties")
    if schema.get("type") == "object" and isinstance(inner, dict):
        return f"object of {_type_of(inner)}"
    return escape(str(schema.get("type", "any value")))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table whose cells are HTML."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>"
