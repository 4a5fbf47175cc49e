"""Checks JSON against an OpenAPI document: requests as described, answers without a field that is not described."""

from __future__ import annotations

from collections.abc import Iterator
import json
from typing import Any

import jsonschema
import requests


_METHODS = ("get", "post", "delete")


def closed(schema: Any) -> Any:
    """The schema with objects that have no other fields than the described ones."""
    if isinstance(schema, list):
        return [closed(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {name: closed(inner) for name, inner in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict):
        whole.setdefault("additionalProperties", False)
    return whole


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in _METHODS
            yield method, path, operation


def events_of(text: str) -> list[Any]:
    """The JSON documents of a stream of events."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


class Described:
    """An OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self._closed = closed(document)

    def operation(self, method: str, path: str) -> dict[str, Any]:
        found = self.document["paths"][path][method.lower()]
        assert isinstance(found, dict)
        return found

    def errors_of_request(self, method: str, path: str, body: object) -> list[str]:
        content = self.operation(method, path)["requestBody"]["content"]["application/json"]
        return self._errors(self.document, content["schema"], body)

    def check_answer(self, method: str, path: str, response: requests.Response) -> list[Any]:
        """Checks a response with what is described for its status; returns its JSON documents."""
        responses = self.operation(method, path)["responses"]
        answer = responses.get(str(response.status_code), responses.get("default"))
        assert answer is not None, (method, path, response.status_code)
        if "$ref" in answer:
            answer = self.document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in answer["content"], (media_type, path)
        schema = closed(answer["content"][media_type]["schema"])
        documents = (
            events_of(response.text) if media_type == "text/event-stream" else [response.json()]
        )
        assert documents
        for document in documents:
            errors = self._errors(self._closed, schema, document)
            assert not errors, (method, path, document, errors)
        return documents

    def _errors(self, root: dict[str, Any], schema: dict[str, Any], value: object) -> list[str]:
        whole = {"components": root["components"], "$id": "urn:document", **schema}
        validator = jsonschema.Draft202012Validator(whole)
        found = validator.iter_errors(value)
        return [f"{error.json_path}: {_deepest(error)[:500]}" for error in found]


def _deepest(error: Any) -> str:
    inner = jsonschema.exceptions.best_match([error])
    return f"{inner.json_path}: {inner.message}"
