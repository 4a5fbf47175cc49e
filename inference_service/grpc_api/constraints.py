"""Validates the constraint of a request; whether it can be compiled is tried by the backend."""

from __future__ import annotations

from typing import Final

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.field_checks import check_bytes, check_count
from inference_service.grpc_api.json_schema import MAX_ALTERNATIVES, check_repeats, checked_schema
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb


MAX_REGEX_BYTES: Final = 4 * 2**10
MAX_GRAMMAR_BYTES: Final = 64 * 2**10
MAX_CHOICES_BYTES: Final = 64 * 2**10

_FIELD: Final = "spec.constraint"


def constraint_of(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
) -> Constraint | None:
    """The constraint of a request, or None.

    Raises:
        InvalidArgumentError: It has no kind, or exceeds a limit, or its JSON schema cannot be enforced.
    """
    if not spec.HasField("constraint"):
        return None
    message = spec.constraint
    match message.WhichOneof("kind"):
        case "json_object":
            if not message.json_object:
                raise _without_kind("json_object is false")
            return Constraint(kind=ConstraintKind.JSON_OBJECT)
        case "json_schema":
            text = checked_schema(message.json_schema, f"{_FIELD}.json_schema")
            return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=text)
        case "regex":
            return _regex(message)
        case "choices":
            return _choices(message)
        case "grammar":
            return _grammar(message)
    raise _without_kind("no kind is set")


def _regex(message: sampling_pb.Constraint) -> Constraint:
    field = f"{_FIELD}.regex"
    check_bytes(message.regex, MAX_REGEX_BYTES, field)
    check_repeats(message.regex, field)
    return Constraint(kind=ConstraintKind.REGEX, text=message.regex)


def _grammar(message: sampling_pb.Constraint) -> Constraint:
    field = f"{_FIELD}.grammar"
    check_bytes(message.grammar, MAX_GRAMMAR_BYTES, field)
    check_repeats(message.grammar, field)
    if not message.grammar.strip():
        raise InvalidArgumentError("grammar is empty, but a rule start is required.", field=field)
    return Constraint(kind=ConstraintKind.LARK, text=message.grammar)


def _choices(message: sampling_pb.Constraint) -> Constraint:
    field = f"{_FIELD}.choices.values"
    values = tuple(message.choices.values)
    if not values:
        raise InvalidArgumentError(
            "choices is empty, but at least one permitted answer is required.", field=field
        )
    check_count(values, MAX_ALTERNATIVES, field)
    check_bytes("".join(values), MAX_CHOICES_BYTES, field)
    return Constraint(kind=ConstraintKind.CHOICES, values=values)


def _without_kind(problem: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{problem} in constraint; set one of json_object, json_schema, regex, choices and grammar,"
        " or leave out constraint.",
        field=_FIELD,
    )
