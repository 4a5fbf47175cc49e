"""Proofs that no value matches two of several JSON schemas, and that a schema has no value that ends.

They err on one side: what is not proved may hold all the same. They end after a number of steps, as schemas are the
caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
from contextvars import ContextVar
from dataclasses import dataclass
import itertools
import math
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from inference_service.grpc_api import schema_facts as facts


MAX_STEPS: Final = 30_000
"""Schemas, names and values that are looked at for all proofs about a document."""
MAX_SHARED_STEPS: Final = 10 * MAX_STEPS
"""Those of all documents within `shared_steps`."""
_TEXT_OF_STEP: Final = 16
"""To write so many characters of a value, or to compare them, costs as much as a step."""
_OTHERS_OF_STEP: Final = 16
"""To pass over so many values that are no new schema costs as much as a step."""
_ENDING_OF_STEP: Final = 4
"""To meet so many values that are known to end costs as much as a step."""
_DEPTHS: Final = (1, 3, 9)
"""Levels of properties in which a contradiction is looked for, the nearest first."""

T = TypeVar("T")


@dataclass(slots=True)
class _Budget:
    left: float


_BUDGET: Final[ContextVar[_Budget | None]] = ContextVar("schema_steps", default=None)


@contextlib.contextmanager
def shared_steps() -> Iterator[None]:
    """Within it, all documents together have `MAX_SHARED_STEPS`: a request may have hundreds of them."""
    token = _BUDGET.set(_Budget(MAX_SHARED_STEPS))
    try:
        yield
    finally:
        _BUDGET.reset(token)


class Proofs:
    """Proofs about schemas of one document."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        """Takes the document, in which references are looked up."""
        self._root = root
        self._budget = _BUDGET.get() or _Budget(MAX_STEPS)
        self._left = min(MAX_STEPS, self._budget.left)
        self._finite: set[int] = set()
        self._targets: dict[
            str, Any
        ] = {}  # of references, which may be long, and met at every step
        self._texts: dict[
            int, tuple[object, str]
        ] = {}  # with the value, so that its id stays its own

    def are_disjoint(self, schemas: Sequence[Any]) -> bool:
        """Whether it is proved that every value matches at most one of the schemas."""
        try:
            return (
                self._have_distinct_values(schemas)
                or self._have_distinct_properties(schemas)
                or any(self._exclude_each_other(schemas, depth) for depth in _DEPTHS)
            )
        except RecursionError:
            return False

    def is_endless(self, schema: Any) -> bool:
        """Whether it is proved that every value of the schema has another value of it in it."""
        try:
            return self._never_ends(schema, frozenset())
        except RecursionError:
            return False

    def _text(self, value: object) -> str:
        """The canonical text of a value; a long one is many steps."""
        if id(value) not in self._texts:
            text = facts.canonical(value)
            self._texts[id(value)] = (value, text)
            self._spend(len(text) // _TEXT_OF_STEP)
        return self._texts[id(value)][1]

    def _have_distinct_values(self, schemas: Sequence[Any]) -> bool:
        """Whether each schema has a list of values, and no two lists have the same one."""
        seen: set[str] = set()
        for schema in schemas:
            values = next(filter(None, map(facts.values, self._all_of([schema]))), None)
            if values is None or not self._spend(len(values)):
                return False
            found = set(map(self._text, values))
            if seen & found:
                return False
            seen |= found
        return True

    def _have_distinct_properties(self, schemas: Sequence[Any]) -> bool:
        """Whether the schemas are of objects that are told apart by the values of a property that all require."""
        objects: list[list[Mapping[str, Any]]] = []
        for schema in schemas:
            objects.append(facts.mappings(self._all_of([schema])))
            if self._left <= 0 or facts.types_of(objects[-1]) != {"object"}:
                return False
        names = set.intersection(*map(self._required, objects)) if objects else set[str]()
        steps = len(objects) + sum(map(len, objects)) // _OTHERS_OF_STEP
        return any(
            self._have_distinct_values(
                [{"allOf": self._values_of(name, parts)} for parts in objects]
            )
            for name in sorted(names)
            if self._spend(steps)
        )

    def _exclude_each_other(self, schemas: Sequence[Any], depth: int) -> bool:
        return all(self._none_matches(pair, depth) for pair in itertools.combinations(schemas, 2))

    def _none_matches(
        self, schemas: Iterable[Any], depth: int, chosen: frozenset[int] = frozenset()
    ) -> bool:
        """Whether it is proved that no value matches all of the schemas.

        Args:
            schemas: The schemas.
            depth: Levels of properties to look at.
            chosen: The lists of alternatives of which `schemas` has one.
        """
        together = self._all_of(schemas)
        if self._left <= 0:
            return False
        parts = facts.mappings(together)
        types = facts.types_of(parts)
        if False in together or not types or self._excludes_values(parts):
            return True
        if types <= facts.NUMBERS and facts.no_number_in(parts, integers="number" not in types):
            return True
        if len(types) == 1 and facts.no_size_in(parts, *types):
            return True
        if types == {"object"} and self._lacks_property(parts, depth):
            return True
        lists = (several for schema in parts for several in facts.choices(schema))
        return any(
            all(self._none_matches([*parts, one], depth, chosen | {id(choices)}) for one in choices)
            for choices in self._while_any_left(lists)
            if id(choices) not in chosen
        )

    def _excludes_values(self, parts: Sequence[Mapping[str, Any]]) -> bool:
        lists = [values for values in map(facts.values, parts) if values is not None]
        if not lists:
            return False
        fewest = min(lists, key=len)
        if not self._spend(sum(map(len, lists)) + len(fewest) * len(parts)):
            return False
        allowed = [set(map(self._text, values)) for values in lists]
        return not any(
            all(self._text(value) in others for others in allowed)
            and all(self._may_be(value, schema) for schema in parts)
            for value in fewest
        )

    def _may_be(self, value: object, schema: Mapping[str, Any]) -> bool:
        """Whether a value may match, as far as types and ranges tell, and the properties that it must have."""
        types = facts.types_of([schema])
        if isinstance(value, bool):
            return "boolean" in types
        if isinstance(value, (int, float)):
            whole = isinstance(value, int) or value.is_integer()
            if "number" not in types and not (whole and "integer" in types):
                return False
            only = {"minimum": value, "maximum": value}
            return not facts.no_number_in([schema, only], integers=False)
        if isinstance(value, dict):
            return "object" in types and all(name in value for name in self._required([schema]))
        kinds = {str: "string", list: "array", type(None): "null"}
        return kinds[type(value)] in types

    def _lacks_property(self, parts: Sequence[Mapping[str, Any]], depth: int) -> bool:
        """Whether a property is required that can have no value."""
        for name in sorted(self._required(parts)):
            if not self._spend(len(parts)):
                return False
            values = self._values_of(name, parts)
            if depth and self._none_matches(values, depth - 1):
                return True
        return False

    @staticmethod
    def _values_of(name: str, parts: Iterable[Mapping[str, Any]]) -> list[Any]:
        """The schemas that a property must match."""
        values: list[Any] = []
        for schema in parts:
            properties = schema.get("properties")
            if isinstance(properties, dict) and name in properties:
                values.append(properties[name])
            elif not schema.get("patternProperties"):
                values.append(schema.get("additionalProperties", True))
        return values

    def _required(self, parts: Iterable[Mapping[str, Any]]) -> set[str]:
        """The properties that objects must have; none if there is no time to look at them."""
        lists = [names for schema in parts if isinstance(names := schema.get("required"), list)]
        if not self._spend(sum(map(len, lists))):
            return set()
        return {name for names in lists for name in names if isinstance(name, str)}

    def _all_of(self, schemas: Iterable[Any]) -> list[facts.Schema]:
        """The schemas, those that they refer to, and those in their `allOf`: a value must match each of them.

        Each is a step; those for which none is left are missing.
        """
        found: list[facts.Schema] = []
        seen: set[int] = set()
        waiting = list(schemas)
        others = 0  # what is no schema, or was met before
        while waiting and self._left > 0:
            schema = waiting.pop()
            if isinstance(schema, bool):
                found.append(schema)
                self._spend(1)
            elif isinstance(schema, dict) and id(schema) not in seen:
                seen.add(id(schema))
                found.append(schema)
                self._spend(1)
                waiting += self._implied(schema)
            else:
                others += 1
        self._spend(others // _OTHERS_OF_STEP)
        return found

    def _implied(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        if isinstance(reference := schema.get("$ref"), str):
            if reference not in self._targets:
                self._targets[reference] = self._target(reference)
            yield self._targets[reference]
        if isinstance(several := schema.get("allOf"), list):
            yield from several

    def _target(self, reference: str) -> Any:
        """What a reference refers to; `{}`, which tells nothing, if that is not in the document."""
        name, _, path = reference.partition("#")
        value: Any = self._root
        if name or (path and not path.startswith("/")):
            return {}
        for part in unquote(path).split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                value = value[key]
            elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
                value = value[int(key)]
            else:
                return {}
        return value

    def _never_ends(self, schema: Any, within: frozenset[int]) -> bool:
        """Whether every value of a schema needs another value of it, or of one of the schemas `within`, in it."""
        if not isinstance(schema, dict) or id(schema) in self._finite:
            self._spend(1 / _ENDING_OF_STEP)
            return False
        if id(schema) in within:
            return True
        if not self._spend(1):
            return False
        inner = within | {id(schema)}
        needed = self._while_any_left(self._needed(schema))
        endless = any(self._never_ends(one, inner) for one in needed) or any(
            all(self._never_ends(choice, inner) for choice in choices)
            for choices in facts.choices(schema)
        )
        if not endless and self._left > 0:
            self._finite.add(id(schema))
        return endless

    def _needed(self, schema: Mapping[str, Any]) -> Iterator[Any]:
        """Schemas of which every value of a schema has one, or is one."""
        yield from self._implied(schema)
        properties = schema.get("properties")
        if schema.get("type") == "object" and isinstance(properties, dict):
            yield from (properties[name] for name in self._required([schema]) if name in properties)
        if schema.get("type") == "array" and (
            least := max(facts.numbers([schema], "minItems"), default=0)
        ):
            first = schema.get("prefixItems")
            first = first if isinstance(first, list) else []
            yield from first[: math.ceil(min(least, len(first)))]
            if least > len(first):
                yield schema.get("items")

    def _while_any_left(self, items: Iterable[T]) -> Iterator[T]:
        """The items until no step is left: then each proof has failed, and so have those that wait for it."""
        return itertools.takewhile(lambda _: self._left > 0, items)

    def _spend(self, steps: float) -> bool:
        self._left -= steps
        self._budget.left -= steps
        return self._left > 0
