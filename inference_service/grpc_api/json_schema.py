"""Checks the JSON schema of a constraint: its size, and that every keyword in it can be enforced.

A schema is read as JSON Schema 2020-12. What remains is compiled by llguidance, which refuses the rest: contradictions,
an `oneOf` whose alternatives may overlap, regular expressions with look-around.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
from typing import Any, Final, NoReturn

from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.repetitions import repeats
from inference_service.grpc_api.schema_proofs import Proofs


MAX_SCHEMA_BYTES: Final = 64 * 2**10
MAX_DEPTH: Final = 64
MAX_ALTERNATIVES: Final = 5000
MAX_REPEATS: Final = 1000
MAX_INTEGER: Final = 2**53 - 1
MAX_DIGITS: Final = 15

FORMATS: Final = (
    *("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"),
)
"""The values of `format` that are enforced."""

_UNSUPPORTED: Final = frozenset(
    (
        *("$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired"),
        *("dependentSchemas", "else", "if", "maxContains", "minContains", "not", "propertyNames"),
        *("then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    )
)
"""Keywords that change what is valid and cannot be enforced."""
_NUMBERS: Final = frozenset(
    (
        *("const", "enum", "exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum"),
        *("multipleOf",),
    )
)
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS: Final = ("$defs", "definitions", "patternProperties", "properties")
_SINGLES: Final = ("additionalItems", "additionalProperties", "items")
_COUNTED: Final = ("allOf", "anyOf", "enum", "oneOf", "prefixItems", "properties", "required")
_COMPILER_OPTIONS: Final = "x-guidance"
"""llguidance would read options from it, such as free white space."""
_MAX_SHOWN: Final = 60
_MAX_PATH: Final = 120


def checked_schema(text: str, field: str) -> str:
    """The schema without what has no effect.

    Args:
        text: The JSON text.
        field: Path of its field in the request.

    Raises:
        InvalidArgumentError: It is not the JSON text of an object, exceeds a limit, or has a keyword that cannot be
            enforced; the message has the keyword's path in the schema.
    """
    size = len(text.encode())
    if size > MAX_SCHEMA_BYTES:
        _refuse(f"has {size} bytes, but at most {MAX_SCHEMA_BYTES} are allowed.", field)
    try:
        schema = json.loads(text, parse_constant=_no_number)
        if not isinstance(schema, dict):
            _refuse("must be the JSON text of an object.", field)
        if _is_deeper(schema, MAX_DEPTH):
            _refuse(f"is nested more than {MAX_DEPTH} levels deep.", field)
        _Schemas(field).check(schema, "")
        proofs = Proofs(schema)
        if proofs.is_endless(schema):
            _refuse("refers to itself without end: each value would have another one in it.", field)
        # Escaped: half of a surrogate pair could not be sent on.
        plain = json.dumps(schema, allow_nan=False)
        if "/oneOf/" in plain:  # a reference may lead through one
            return plain
        _allow_exclusive(schema, proofs)
        return json.dumps(schema, allow_nan=False)
    except (ValueError, RecursionError):
        raise InvalidArgumentError(
            f"{_name(field)} is not valid JSON; it must be the JSON text of an object.", field=field
        ) from None


def check_repeats(pattern: str, field: str, where: str = "") -> None:
    """Checks the counts of repetitions, `{m,n}`, in a regular expression or grammar.

    Args:
        pattern: The text.
        field: Path of its field in the request.
        where: The path in the schema, if it is in one.

    Raises:
        InvalidArgumentError: A count exceeds `MAX_REPEATS`.
    """
    for count in repeats(pattern):
        if len(count) > 9 or int(count) > MAX_REPEATS:
            place = f" in {_shown(where)}" if where else ""
            _refuse(
                f"has a repetition count of {count[:20]}{place}, but at most {MAX_REPEATS} are allowed.",
                field,
            )


class _Schemas:
    """Checks a schema and those in it; `where` is the path of a keyword, such as `properties.size.format`."""

    def __init__(self, field: str) -> None:
        self._field = field

    def check(self, schema: Any, where: str) -> None:
        """Checks one schema, and strips what has no effect."""
        if not isinstance(schema, dict):
            return
        schema.pop(_COMPILER_OPTIONS, None)
        if schema.get("uniqueItems") is False:
            del schema["uniqueItems"]
        for keyword, value in schema.items():
            path = _path(where, keyword)
            self._check_keyword(keyword, value, path)
        for inner, path in _inner_schemas(schema, where):
            self.check(inner, path)

    def _check_keyword(self, keyword: str, value: Any, path: str) -> None:
        if keyword in _UNSUPPORTED:
            self._refuse(f"uses {_shown(path)}, which is not supported.")
        if keyword == "$ref" and isinstance(value, str) and not value.startswith("#"):
            self._refuse(
                f"uses {_shown(path)} with a reference to another document; only local ones are"
                " supported."
            )
        if keyword == "format" and value not in FORMATS:
            known = ", ".join(FORMATS)
            self._refuse(f"uses {_shown(path)} {_shown(value)}; supported are: {known}.")
        if (
            keyword in _COUNTED
            and isinstance(value, (list, dict))
            and len(value) > MAX_ALTERNATIVES
        ):
            self._refuse(
                f"has {len(value)} entries in {_shown(path)}, but at most {MAX_ALTERNATIVES}"
                " are allowed."
            )
        if keyword in _NUMBERS and not _is_exact(value):
            self._refuse(
                f"has a number in {_shown(path)} that cannot be enforced exactly: integers are between -{MAX_INTEGER}"
                f" and {MAX_INTEGER}, and other numbers have at most {MAX_DIGITS} digits."
            )
        if keyword == "pattern" and isinstance(value, str):
            check_repeats(value, self._field, path)
        if keyword == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                check_repeats(pattern, self._field, path)

    def _refuse(self, problem: str) -> NoReturn:
        _refuse(problem, self._field)


def _inner_schemas(schema: dict[str, Any], where: str) -> Iterator[tuple[Any, str]]:
    """The schemas in a schema, with their paths."""
    for keyword in _MAPS:
        if isinstance(inner := schema.get(keyword), dict):
            path = _path(where, keyword)
            yield from ((value, _path(path, name)) for name, value in inner.items())
    for keyword in (*_LISTS, *_SINGLES):
        inner, path = schema.get(keyword), _path(where, keyword)
        if isinstance(inner, list):
            yield from ((value, f"{path}[{index}]") for index, value in enumerate(inner))
        else:
            yield inner, path


def _path(where: str, name: str) -> str:
    """The path of what is in another: no longer than messages show, as there may be thousands below a long name."""
    path = f"{where[:_MAX_PATH]}.{name[:_MAX_PATH]}" if where else name
    return path[:_MAX_PATH]


def _allow_exclusive(schema: Any, proofs: Proofs) -> None:
    """Makes each `oneOf` whose alternatives exclude each other an `anyOf`: the compiler proves that of few of them."""
    if not isinstance(schema, dict):
        return
    for inner, _ in _inner_schemas(schema, ""):
        _allow_exclusive(inner, proofs)
    alternatives, others = schema.get("oneOf"), schema.get("allOf", [])
    if not isinstance(alternatives, list) or not isinstance(others, list):
        return
    if proofs.are_disjoint(alternatives):
        del schema["oneOf"]
        if "anyOf" in schema:
            schema["allOf"] = [*others, {"anyOf": alternatives}]
        else:
            schema["anyOf"] = alternatives


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _is_exact(value: Any) -> bool:
    """Whether all numbers in a value keep their value in the compiler, which calculates with float64."""
    if isinstance(value, (dict, list)):
        return all(map(_is_exact, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        digits = repr(value).partition("e")[0].replace(".", "").strip("-0")
        return len(digits) <= MAX_DIGITS
    return not isinstance(value, int) or abs(value) <= MAX_INTEGER


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _name(field: str) -> str:
    return field.rpartition(".")[2]


def _refuse(problem: str, field: str) -> NoReturn:
    raise InvalidArgumentError(f"{_name(field)} {problem}", field=field)
