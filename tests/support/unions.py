"""Schemas with an `oneOf` of which no value can match two alternatives."""

from __future__ import annotations

from typing import Any


def tagged(value: object, **fields: Any) -> dict[str, Any]:
    """A variant of a union, told apart by its `kind`."""
    properties = {"kind": {"const": value}, **fields.pop("properties", {})}
    return {"type": "object", "properties": properties, "required": ["kind"], **fields}


REFS = [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]
CLOSED = {"additionalProperties": False}
NEXT = {"next": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]}}
DISJOINT: dict[str, dict[str, Any]] = {
    "constants": {"oneOf": [{"const": 1}, {"const": 2}]},
    "constants with titles": {"oneOf": [{"const": "a", "title": "A"}, {"const": "b"}]},
    "constants of several types": {"oneOf": [{"const": True}, {"const": 1}, {"const": "1"}]},
    "objects and lists": {"oneOf": [{"const": {"a": [1]}}, {"const": {"a": [2]}}]},
    "many constants": {"oneOf": [{"const": f"v{n}"} for n in range(1500)]},
    "lists of values": {"oneOf": [{"enum": [1, "a"]}, {"enum": [2, "b"]}]},
    "types": {"oneOf": [{"type": "string"}, {"type": ["null", "integer"]}]},
    "values of other types": {"oneOf": [{"enum": ["a", 1]}, {"type": "boolean"}]},
    "ranges": {
        "oneOf": [{"type": "integer", "maximum": 1}, {"type": "integer", "minimum": 5}],
    },
    "ranges that touch": {
        "oneOf": [{"type": "number", "exclusiveMaximum": 1}, {"type": "number", "minimum": 1}],
    },
    "integers between numbers": {
        "oneOf": [{"type": "integer", "maximum": 1.5}, {"type": "integer", "minimum": 1.2}],
    },
    "a value out of a range": {"oneOf": [{"const": 7}, {"type": "integer", "maximum": 5}]},
    "lengths": {
        "oneOf": [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}],
    },
    "references": {"oneOf": REFS, "$defs": {"A": tagged("a"), "B": tagged("b")}},
    "closed": {"oneOf": REFS, "$defs": {"A": tagged("a", **CLOSED), "B": tagged("b", **CLOSED)}},
    "tags of numbers": {"oneOf": [tagged(1), tagged(2), tagged(None), tagged(True)]},
    "many variants": {"oneOf": [tagged(f"v{n}") for n in range(300)]},
    "recursive variants": {
        "oneOf": [*REFS, {"type": "null"}],
        "$defs": {
            "A": tagged("a", properties=NEXT, required=["kind", "next"]),
            "B": tagged("b", properties=NEXT, required=["next", "kind"]),
        },
    },
    "nested tags": {
        "oneOf": [
            {"type": "object", "properties": {"head": tagged(n)}, "required": ["head"]}
            for n in "ab"
        ],
    },
    "a variant by `allOf`": {"oneOf": [{"allOf": [tagged("a"), {"title": "A"}]}, tagged("b")]},
    "required and not allowed": {
        "oneOf": [
            {"type": "object", "properties": {n: {}}, "required": [n], **CLOSED} for n in "ab"
        ],
    },
    "alternatives within": {
        "oneOf": [{"anyOf": [tagged("a"), tagged("b")]}, {"anyOf": [tagged("c"), {"const": 1}]}],
    },
}
