"""JSON schemas of chance whose answers are short, within what constraints enforce."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st


Schema = dict[str, Any]

_NAMES: Final = st.sampled_from(
    ["colour", "shape", "count", "name", "a b", "é", "label", "box", "x", "y", "$id2", 'q"q']
)
_WORDS: Final = st.sampled_from(
    ["red", "blue", "a circle", "", "é", "<think>", 'say "x"', "\n", "1"]
)


def _strings() -> st.SearchStrategy[Schema]:
    plain = st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 4),
        st.integers(0, 5),
    )
    patterns = st.sampled_from(["^[a-z]{1,5}$", "^(red|blue) [0-9]$", "^#[0-9a-f]{6}$", "^.{2}$"])
    formats = st.sampled_from(["date", "time", "ipv4", "uuid"])
    return st.one_of(
        plain,
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        formats.map(lambda name: {"type": "string", "format": name}),
    )


def _numbers() -> st.SearchStrategy[Schema]:
    return st.builds(
        lambda kind, low, more: {"type": kind, "minimum": low, "maximum": low + more},
        st.sampled_from(["integer", "number"]),
        st.integers(-50, 50),
        st.integers(0, 200),
    )


def _leaves() -> st.SearchStrategy[Schema]:
    values = st.one_of(_WORDS, st.integers(-5, 5), st.booleans(), st.none())
    enums = st.lists(values, min_size=1, max_size=4).map(lambda found: {"enum": found})
    constants = values.map(lambda value: {"const": value})
    types = st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "boolean"]}])
    return st.one_of(_strings(), _numbers(), enums, constants, types)


def _objects(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def of(properties: dict[str, Schema], optional: set[int]) -> Schema:
        required = [name for index, name in enumerate(properties) if index not in optional]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }

    return st.builds(
        of, st.dictionaries(_NAMES, inner, max_size=4), st.sets(st.integers(0, 3), max_size=2)
    )


def _arrays(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    plain = st.builds(
        lambda items, low, more: {
            "type": "array",
            "items": items,
            "minItems": low,
            "maxItems": low + more,
            "uniqueItems": False,
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    tuples = st.lists(inner, min_size=1, max_size=3).map(
        lambda prefix: {
            "type": "array",
            "prefixItems": prefix,
            "items": False,
            "minItems": len(prefix),
        }
    )
    return st.one_of(plain, tuples)


def schemas() -> st.SearchStrategy[Schema]:
    """Objects of leaves, arrays, alternatives and further objects."""
    inner = st.recursive(
        _leaves(),
        lambda inner: st.one_of(
            _objects(inner),
            _arrays(inner),
            st.lists(inner, min_size=1, max_size=3).map(lambda found: {"anyOf": found}),
        ),
        max_leaves=6,
    )
    return _objects(inner)
