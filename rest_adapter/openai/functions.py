"""The definition of a function that the model may call: the same fields in Chat Completions and in Responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import invalid
from rest_adapter.json_model import asks_for_nothing
from rest_adapter.json_values import text_of
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import wrong


OF_FUNCTIONS: Final = ("name", "description", "parameters", "strict")
OF_TOOLS_IGNORED: Final = frozenset(("allowed_callers", "async", "defer_loading", "output_schema"))
"""Known fields of functions that have no effect here."""
CHOICES: Final = "none, auto, required, or an object with type function or allowed_tools"


@dataclass(frozen=True, slots=True)
class Function:
    """A function that the model may call.

    Attributes:
        name: Its name.
        description: For the model; None = none.
        parameters: The JSON schema of the arguments; None = any object.
        schema: The text of `parameters`; empty = any object.
        strict: Whether the arguments must match; None = the service's default.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any] | None
    schema: str
    strict: bool | None

    def tool(self) -> message_pb.Tool:
        """The function for the service."""
        return message_pb.Tool(
            name=self.name,
            description=self.description or "",
            parameters_json_schema=self.schema,
            strict=self.strict,
        )


def read_function(fields: Fields) -> Function:
    """Reads the object with the name of a function.

    Raises:
        ApiError: A field is missing or invalid.
    """
    name = fields.text("name")
    if name is None:
        path = fields.path_of("name")
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    parameters, path = fields.values.get("parameters"), fields.path_of("parameters")
    if asks_for_nothing(parameters):  # an empty object is a list in PHP
        parameters = parameters if isinstance(parameters, dict) else None
    elif not isinstance(parameters, dict):
        raise wrong(path, parameters, "a JSON schema")
    schema = text_of(parameters, path) if parameters else ""
    return Function(name, fields.text("description"), parameters, schema, read_strict(fields))


def read_strict(fields: Fields) -> bool | None:
    """Whether the arguments of a call must match the schema; None = the service's default.

    Raises:
        ApiError: It is something else.
    """
    strict = fields.values.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise wrong(fields.path_of("strict"), strict, "true or false")
    return strict
