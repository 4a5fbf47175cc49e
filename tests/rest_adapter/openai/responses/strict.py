"""Strict checks against the types of `openai` and `openresponses-types`: nothing missing, nothing of another type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import openai.types.responses as openai_types
from openresponses_types import types as open_types
from pydantic import BaseModel, TypeAdapter


# Of Open Responses, and unknown to OpenAI's types: `bytes` in the log probabilities of events.
EXTRAS = {"presence_penalty", "frequency_penalty", "store", "bytes"}
_OPENAI_EVENT: TypeAdapter[Any] = TypeAdapter(openai_types.ResponseStreamEvent)
_OPEN_EVENTS = {
    next(iter(kind.model_fields["type"].annotation)).value: kind
    for name, kind in vars(open_types).items()
    if name.endswith("StreamingEvent")
}
# Raw reasoning has other names in Open Responses.
_OPENAI_ONLY = {"response.reasoning_text.delta", "response.reasoning_text.done"}


def extras_of(value: object, path: str = "") -> Iterator[str]:
    """The fields of a model, and of the models in it, that its type does not have."""
    if isinstance(value, BaseModel):
        for name in value.__pydantic_extra__ or {}:
            yield f"{path}.{name}"
        for name, inner in value:
            yield from extras_of(inner, f"{path}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from extras_of(inner, f"{path}[{index}]")


def check_resource(document: Mapping[str, Any]) -> None:
    parsed = openai_types.Response.model_validate(document)
    assert {name.rpartition(".")[2] for name in extras_of(parsed)} <= EXTRAS
    open_types.ResponseResource.model_validate(_as_open(document))


def check_event(document: Mapping[str, Any]) -> None:
    parsed = _OPENAI_EVENT.validate_python(document)
    names = {name.rpartition(".")[2] for name in extras_of(parsed)}
    is_error = document["type"] == "error"
    assert names <= EXTRAS | ({"error"} if is_error else set()), document
    assert parsed.type == document["type"]
    if document["type"] not in _OPENAI_ONLY:
        kind = _OPEN_EVENTS[document["type"]]
        response = {"response": _as_open(document["response"])} if "response" in document else {}
        kind.model_validate({**document, **response})


def _as_open(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without the schema of a format, for which these types allow null alone, by a mistake of their generator."""
    text = document["text"]
    if text["format"]["type"] == "json_schema":
        text = {**text, "format": {**text["format"], "schema": None}}
    return {**document, "text": text}
