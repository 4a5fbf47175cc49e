"""How a dialect describes its routes: operations with the shapes of what they take and answer.

Requests are the pydantic models that check them; what these leave to a reader of its own has a `Shape`. Answers are
described by typed dictionaries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Shape:
    """Describes a field that is not checked by pydantic: `Annotated[Any, Shape(str | list[str])]`.

    Attributes:
        kind: A type, of which pydantic makes the JSON schema.
    """

    kind: Any

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The JSON schema of `kind` instead of the field's own, which is that of any value."""
        del schema
        return handler(TypeAdapter(self.kind).core_schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A part of the path or of the query, or a header.

    Attributes:
        name: Its name.
        place: Where it stands.
        description: What it means.
        schema: Its JSON schema.
    """

    name: str
    place: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path.

    Attributes:
        method: The HTTP method, in lower case.
        path: The path, with `{name}` for parameters.
        name: Identifies the operation, for generated clients.
        summary: What it does, in a line.
        tag: The group it belongs to.
        request: The type of its JSON body; None = it has none.
        example: A body.
        answer: The type of the JSON of 200; None = it is not JSON.
        events: The type of the `data` of each server-sent event, where it streams.
        other: The media type and the description of an answer that is neither.
        parameters: The parts of path and query, and headers.
        is_open: It needs no key.
    """

    method: Literal["get", "post", "delete"]
    path: str
    name: str
    summary: str
    tag: str
    request: Any = None
    example: Mapping[str, Any] | None = None
    answer: Any = None
    events: Any = None
    other: tuple[str, str] | None = None
    parameters: Sequence[Parameter] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a dialect serves.

    Attributes:
        error: The name of its errors.
        error_body: The type of the JSON of an error.
        security: Its security schemes by their names; one of them is enough.
        operations: Its operations. One that another dialect has too is joined with that.
        overloaded: Statuses of its own for a service without room.
    """

    error: str
    error_body: Any
    security: Mapping[str, Mapping[str, str]]
    operations: Sequence[Operation]
    overloaded: Sequence[int] = ()
