"""Builds the OpenAPI document from the descriptions of the dialects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter

from rest_adapter.openapi.operation import Description, Operation


_REFERENCE: Final = "#/components/schemas/{model}"
_STATUSES: Final = {
    400: "The request is invalid, or asks for something that is not supported; the error names the field.",
    401: "The API key is missing or unknown.",
    403: "The key may not do this, or a page of a foreign origin asks.",
    404: "There is no such model or stored response.",
    408: "The body arrived too slowly.",
    409: "A request with the same `request_id` is in flight.",
    413: "The body or its images are too large.",
    415: "The content type or the content encoding is not supported.",
    422: "The answer cannot be continued in the form that it must have.",
    429: "Too many requests; `retry-after` tells when to try again.",
    499: "The request was aborted.",
    500: "An internal error.",
    503: "The service is loading, draining or overloaded; `retry-after` tells when to try again.",
    504: "The request did not finish before its deadline.",
    529: "There is no room for the request; `retry-after` tells when to try again.",
}
_WITH_RETRY: Final = (429, 503, 529)
_REQUEST_ID: Final = {
    "description": "The client's own `x-request-id`, or the id of the request.",
    "schema": {"type": "string"},
}
_RETRY_AFTER: Final = {
    "description": "Seconds after which the same request may succeed.",
    "schema": {"type": "integer", "minimum": 0},
}


def build_document(
    descriptions: Sequence[Description], version: str, *, needs_key: bool
) -> dict[str, Any]:
    """The OpenAPI 3.1 document.

    Args:
        descriptions: What is served.
        version: Version of this software.
        needs_key: Whether requests need an API key.
    """
    shapes = _Shapes(descriptions)
    paths: dict[str, dict[str, Any]] = {}
    responses: dict[str, Any] = {}
    for description in descriptions:
        errors = dict(_errors(description, shapes))
        responses |= dict(errors.values())
        for operation in description.operations:
            document = _operation(operation, description, errors, shapes, needs_key=needs_key)
            methods = paths.setdefault(operation.path, {})
            first = methods.get(operation.method)
            if first is not None:
                document = _either(first, document, responses)
            methods[operation.method] = document
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "qwen-vl-serving",
            "version": version,
            "description": "The HTTP APIs of OpenAI and Anthropic for Qwen-VL models. Fields that are unknown are"
            " ignored, or refused if the server runs with --strict-fields.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": name}
            for name in dict.fromkeys(o.tag for d in descriptions for o in d.operations)
        ],
        "paths": paths,
        "components": {
            "schemas": shapes.schemas,
            "responses": responses,
            "securitySchemes": {
                name: scheme for d in descriptions for name, scheme in d.security.items()
            },
        },
    }


class _Shapes:
    """The JSON schemas of all types, each under a name of its own."""

    def __init__(self, descriptions: Sequence[Description]) -> None:
        kinds = [
            kind
            for description in descriptions
            for kind in (
                description.error_body,
                *(k for o in description.operations for k in (o.request, o.answer, o.events)),
            )
            if kind is not None
        ]
        self._kinds = kinds
        inputs = [(index, "validation", TypeAdapter(kind)) for index, kind in enumerate(kinds)]
        self._found, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)  # type: ignore[arg-type]  # a list of pairs of a mode
        self.schemas: dict[str, Any] = definitions.get("$defs", {})

    def of(self, kind: Any) -> Any:
        """The schema of a type, mostly a reference."""
        index = next(i for i, known in enumerate(self._kinds) if known is kind)
        return self._found[index, "validation"]


def _errors(
    description: Description, shapes: _Shapes
) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """For every status its response among the components: its name and itself."""
    body = {"application/json": {"schema": shapes.of(description.error_body)}}
    for status, text in _STATUSES.items():
        if status == 529 and status not in description.overloaded:
            continue
        headers = {"x-request-id": _REQUEST_ID}
        if status in _WITH_RETRY:
            headers["retry-after"] = _RETRY_AFTER
        name = f"{description.error}{status}"
        yield str(status), (name, {"description": text, "headers": headers, "content": body})
    name = f"{description.error}Default"
    other = {"description": "Any other error.", "headers": {"x-request-id": _REQUEST_ID}}
    yield "default", (name, {**other, "content": body})


def _operation(
    operation: Operation,
    description: Description,
    errors: Mapping[str, tuple[str, Mapping[str, Any]]],
    shapes: _Shapes,
    *,
    needs_key: bool,
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": [operation.tag],
    }
    if operation.parameters:
        document["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.place,
                "required": parameter.place == "path",
                "description": parameter.description,
                "schema": parameter.schema,
            }
            for parameter in operation.parameters
        ]
    if operation.request is not None:
        body: dict[str, Any] = {"schema": shapes.of(operation.request)}
        if operation.example is not None:
            body["example"] = operation.example
        document["requestBody"] = {"required": True, "content": {"application/json": body}}
    document["responses"] = {"200": _answer(operation, shapes)} | {
        status: {"$ref": f"#/components/responses/{name}"} for status, (name, _) in errors.items()
    }
    schemes: list[dict[str, list[str]]] = [{name: []} for name in description.security]
    if not needs_key:
        schemes.insert(0, {})
    document["security"] = [] if operation.is_open else schemes
    return document


def _answer(operation: Operation, shapes: _Shapes) -> dict[str, Any]:
    content: dict[str, Any] = {}
    text = "The answer."
    if operation.answer is not None:
        content["application/json"] = {"schema": shapes.of(operation.answer)}
    if operation.events is not None:
        text += " A stream has server-sent events, each with such a JSON document as its `data`."
        content["text/event-stream"] = {"schema": shapes.of(operation.events)}
    if operation.other is not None:
        media_type, text = operation.other
        content[media_type] = {"schema": {"type": "string"}}
    return {"description": text, "headers": {"x-request-id": _REQUEST_ID}, "content": content}


def _either(
    first: dict[str, Any], other: Mapping[str, Any], components: Mapping[str, Any]
) -> dict[str, Any]:
    """One operation for those of two dialects, of which the headers of a request choose one."""
    responses = {}
    for status, one in first["responses"].items():
        both = [_resolved(each, components) for each in (one, other["responses"][status])]
        schemas = [each["content"]["application/json"]["schema"] for each in both]
        content = {"application/json": {"schema": {"anyOf": schemas}}}
        responses[status] = {**both[0], "content": content}
    parameters = [*first.get("parameters", ()), *other.get("parameters", ())]
    named = {(each["name"], each["in"]): each for each in parameters}
    return {**first, "parameters": [*named.values()], "responses": responses}


def _resolved(response: Mapping[str, Any], components: Mapping[str, Any]) -> Mapping[str, Any]:
    """A response, or the component that it refers to."""
    name = response.get("$ref", "").rpartition("/")[2]
    resolved: Mapping[str, Any] = components[name] if name else response
    return resolved
