"""The form that an answer must have, in the spellings of OpenAI's, vLLM's and SGLang's clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from rest_adapter.errors import invalid, unsupported
from rest_adapter.json_model import asks_for_nothing, without_neutral_values
from rest_adapter.json_values import text_of
from rest_adapter.validation import wrong


if TYPE_CHECKING:
    from rest_adapter.openai.fields import AnswerRequest

_TEXT: Final[tuple[object, ...]] = ({"type": "text"}, "text", {})
_SCHEMA_KEYWORDS: Final = frozenset(
    (*("$defs", "$ref", "allOf", "anyOf", "const", "enum", "oneOf", "properties", "type"),)
)
"""What a schema has that stands where an object with `schema` is expected."""
_FORMATS: Final = "text, json_object or json_schema"
_ELSEWHERE: Final = "send the schema in 'json', or a grammar in 'grammar'"


@dataclass(frozen=True, slots=True)
class AskedForm:
    """A form that a request asks for.

    Attributes:
        path: The field that asks for it.
        constraint: The proto.
    """

    path: str
    constraint: sampling_pb.Constraint


def asked_form(request: AnswerRequest) -> AskedForm | None:
    """The form that a request asks for, if it does.

    Raises:
        ApiError: A field has a wrong value or is not supported, or several fields ask for a form.
    """
    forms = list(_asked(request))
    if len(forms) > 1:
        first, second = forms[0].path, forms[1].path
        raise invalid(
            f"'{second}' asks for a form of the answer, as '{first}' does: send one of them.",
            second,
        )
    return forms[0] if forms else None


def form_param(request: AnswerRequest, path: str) -> str | None:
    """The field that asked for a form, if `path` is the proto's `constraint` or in it."""
    if path.partition(".")[0] != "constraint":
        return None
    form = asked_form(request)
    return form.path if form else "response_format"


def _asked(request: AnswerRequest) -> Iterator[AskedForm]:
    asked = _response_format(request.response_format)
    if asked is not None:
        yield AskedForm("response_format", asked)
    for name, read in _PLAIN.items():
        value = getattr(request, name)
        if not asks_for_nothing(value):
            yield AskedForm(name, read(value, name))
    yield from _structured_outputs(request.structured_outputs)


def _response_format(value: object) -> sampling_pb.Constraint | None:
    """The constraint of `response_format`; None = any text."""
    path = "response_format"
    if asks_for_nothing(value) or without_neutral_values(value) in _TEXT:
        return None
    if not isinstance(value, dict):
        raise wrong(path, value, f"an object with the type {_FORMATS}")
    match value.get("type"):
        case "json_object":
            schema = value.get("schema")
            return _any_object() if asks_for_nothing(schema) else _json_schema(schema, path)
        case "json_schema":
            return _json_schema(_schema_in(value), path)
        case "text":
            raise unsupported(path, value, "with the type text, leave out everything else")
        case kind if "type" in value:
            raise wrong(f"{path}.type", kind, _FORMATS)
    raise wrong(path, value, f"an object with the type {_FORMATS}")


def _schema_in(value: Mapping[str, Any]) -> object:
    """The schema of a `response_format`: in `json_schema.schema`, or where clients put it instead."""
    holder = value.get("json_schema", value)
    if isinstance(holder, dict) and "schema" in holder:
        return holder["schema"]
    if holder is not value and isinstance(holder, dict) and _SCHEMA_KEYWORDS & holder.keys():
        return holder
    if isinstance(holder, str):
        return holder
    raise invalid(
        "'response_format' has the type json_schema, but no schema: send it in 'json_schema.schema'.",
        "response_format",
    )


def _structured_outputs(options: Mapping[str, Any] | None) -> Iterator[AskedForm]:
    """VLLM's object; its options about white space ask for what is always done."""
    for name, value in (options or {}).items():
        path = f"structured_outputs.{name}"
        if asks_for_nothing(without_neutral_values(value)) or name == "disable_any_whitespace":
            continue
        if name not in _STRUCTURED:
            raise unsupported(
                path, value, _ELSEWHERE if name == "structural_tag" else "leave it out"
            )
        yield AskedForm(path, _STRUCTURED[name](value, path))


def _json_schema(value: object, path: str) -> sampling_pb.Constraint:
    """A schema as an object, or as the JSON text of one."""
    if isinstance(value, str):
        return sampling_pb.Constraint(json_schema=value)
    if not isinstance(value, dict):
        raise wrong(path, value, "a JSON schema: an object, or the JSON text of one")
    return sampling_pb.Constraint(json_schema=text_of(value, path))


def _any_object() -> sampling_pb.Constraint:
    return sampling_pb.Constraint(json_object=True)


def _json_object(value: object, path: str) -> sampling_pb.Constraint:
    if value is not True:
        raise wrong(path, value, "true or false")
    return _any_object()


def _regex(value: object, path: str) -> sampling_pb.Constraint:
    return sampling_pb.Constraint(regex=_text(value, path))


def _grammar(value: object, path: str) -> sampling_pb.Constraint:
    return sampling_pb.Constraint(grammar=_text(value, path))


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise wrong(path, value, "text")
    return value


def _choices(value: object, path: str) -> sampling_pb.Constraint:
    if not isinstance(value, list) or not all(isinstance(choice, str) for choice in value):
        raise wrong(path, value, "a list of texts")
    return sampling_pb.Constraint(choices=sampling_pb.Choices(values=value))


_Reader: TypeAlias = Callable[[object, str], sampling_pb.Constraint]

_PLAIN: Final[Mapping[str, _Reader]] = {
    "guided_json": _json_schema,
    "guided_regex": _regex,
    "guided_choice": _choices,
    "guided_grammar": _grammar,
    "regex": _regex,
}
"""Fields of older vLLM, and of SGLang."""
_STRUCTURED: Final[Mapping[str, _Reader]] = {
    "json": _json_schema,
    "regex": _regex,
    "choice": _choices,
    "grammar": _grammar,
    "json_object": _json_object,
}
