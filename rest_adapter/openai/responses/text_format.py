"""Reads the form that the text of a response must have: `text.format`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import re
from typing import Any, Final

from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from rest_adapter.errors import invalid
from rest_adapter.json_model import asks_for_nothing
from rest_adapter.json_values import text_of
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import check_length, wrong


_FORMAT: Final = "text.format"
_TYPES: Final = ("text", "json_object", "json_schema")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_MAX_DESCRIPTION_CHARS: Final = 1024
_PLAIN: Final[Mapping[str, Any]] = {"type": "text"}


@dataclass(frozen=True, slots=True)
class TextFormat:
    """The form of an answer.

    Attributes:
        document: `text.format` as OpenAI returns it.
        constraint: The form for the service; None = any.
        path: The path in the JSON of what set it.
    """

    document: Mapping[str, Any]
    constraint: sampling_pb.Constraint | None = None
    path: str = _FORMAT


def read_format(value: object) -> tuple[TextFormat, list[str]]:
    """Reads `text.format`.

    Returns:
        The form, and the paths of unknown fields.

    Raises:
        ApiError: It is invalid or not supported.
    """
    if asks_for_nothing(value):
        return TextFormat(_PLAIN), []
    if not isinstance(value, dict):
        raise wrong(_FORMAT, value, "an object")
    fields = Fields(value, _FORMAT)
    kind = value.get("type")
    if kind not in _TYPES:
        raise wrong(fields.path_of("type"), kind, f"one of: {', '.join(_TYPES)}")
    if kind == "json_schema":
        return _read_schema(fields)
    unknown = [*fields.unknown(())]
    if kind == "text":
        return TextFormat(_PLAIN), unknown
    return TextFormat({"type": kind}, sampling_pb.Constraint(json_object=True)), unknown


def _read_schema(fields: Fields) -> tuple[TextFormat, list[str]]:
    nested = fields.values.get("json_schema")
    if isinstance(nested, dict) and "schema" not in fields.values:
        path = fields.path_of("json_schema")
        message = f"'{path}' is the form of Chat Completions: its fields belong in '{_FORMAT}'."
        raise invalid(message, path)
    schema, strict, name = (fields.values.get(key) for key in ("schema", "strict", "name"))
    if not isinstance(schema, dict):
        raise wrong(fields.path_of("schema"), schema, "a JSON schema")
    if strict is not None and not isinstance(strict, bool):
        raise wrong(fields.path_of("strict"), strict, "true or false")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(fields.path_of("name"), name, "1 to 64 letters, digits, _ and -")
    check_length(fields.path_of("description"), fields.text("description"), _MAX_DESCRIPTION_CHARS)
    document = {
        "type": "json_schema",
        "name": name,
        "description": fields.text("description"),
        "schema": schema,
        "strict": bool(strict),
    }
    constraint = sampling_pb.Constraint(json_schema=text_of(schema, fields.path_of("schema")))
    unknown = [*fields.unknown(("name", "description", "schema", "strict"))]
    return TextFormat(document, constraint, fields.path_of("schema")), unknown
