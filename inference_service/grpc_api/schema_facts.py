"""What a JSON schema says of the values that match it: types, listed values, ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import math
from typing import Any, Final


NUMBERS: Final = frozenset(("integer", "number"))
_TYPES: Final = frozenset(("array", "boolean", "null", "object", "string")) | NUMBERS
_LOW: Final = ("minimum", "exclusiveMinimum")
_HIGH: Final = ("maximum", "exclusiveMaximum")
_SIZES: Final = {
    "string": ("minLength", "maxLength"),
    "array": ("minItems", "maxItems"),
    "object": ("minProperties", "maxProperties"),
}
_MAX_NUMBER: Final = 1e300

Schema = Mapping[str, Any] | bool


def mappings(schemas: Iterable[Any]) -> list[Mapping[str, Any]]:
    """Those of the schemas that are objects."""
    return [schema for schema in schemas if isinstance(schema, dict)]


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """The types that a schema states; an integer is a number. A list with more than there are is not looked at."""
    stated = schema.get("type")
    listed = stated if isinstance(stated, list) else [stated]
    if len(listed) > len(_TYPES):
        return _TYPES
    names = {name for name in listed if isinstance(name, str) and name in _TYPES}
    if "number" in names:
        names.add("integer")
    return frozenset(names) or _TYPES


def types_of(parts: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The types of what matches all of the schemas."""
    return frozenset.intersection(_TYPES, *map(_types, parts))


def choices(schema: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The lists of alternatives of a schema, of each of which a value must match one."""
    for several in (schema.get("anyOf"), schema.get("oneOf")):
        if isinstance(several, list) and several:
            yield several


def values(schema: Schema) -> list[Any] | None:
    """The values that a schema lists; None = it has no list."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def canonical(value: object) -> str:
    """The same text for values that are the same in JSON: 1 and 1.0, but not `true`."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def numbers(parts: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """The values of a keyword that are numbers."""
    return [
        one
        for schema in parts
        if isinstance(one := schema.get(key), (int, float))
        if not isinstance(one, bool) and abs(one) < _MAX_NUMBER
    ]


def no_number_in(parts: Sequence[Mapping[str, Any]], *, integers: bool) -> bool:
    """Whether no number, or no integer, is within the limits of all schemas."""
    least, above = (max(numbers(parts, key), default=-math.inf) for key in _LOW)
    most, below = (min(numbers(parts, key), default=math.inf) for key in _HIGH)
    low, high = max(least, above), min(most, below)
    if not integers or math.isinf(low) or math.isinf(high):
        without_end = low in (above, below) or high in (above, below)
        return low > high or (low == high and without_end)
    first = math.floor(low) + 1 if low == above else math.ceil(low)
    last = math.ceil(high) - 1 if high == below else math.floor(high)
    return first > last


def no_size_in(parts: Sequence[Mapping[str, Any]], kind: str) -> bool:
    """Whether no length of a string or array, or number of properties, is within the limits of all schemas."""
    if kind not in _SIZES:
        return False
    low, high = (numbers(parts, key) for key in _SIZES[kind])
    return max(low, default=0) > min(high, default=math.inf)
