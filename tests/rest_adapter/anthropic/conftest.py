"""Anthropic's client for the fake service, and strict checks against its types."""

from __future__ import annotations

from collections.abc import Iterator
import json
from typing import Any

import anthropic
from anthropic.types import RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter
import pytest
import requests

from tests.rest_adapter.conftest import Adapter


EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
URL = "/v1/messages"


def body_of(content: object = "hello", **fields: Any) -> dict[str, Any]:
    """A request with one message of the user."""
    messages = [{"role": "user", "content": content}]
    return {"model": "demo", "max_tokens": 64, "messages": messages} | fields


def post(adapter: Adapter, content: object = "hello", **fields: Any) -> requests.Response:
    path = fields.pop("path", URL)
    headers = fields.pop("headers", None)
    body = body_of(content, **fields)
    return requests.post(adapter.url + path, json=body, headers=headers, timeout=30)


def strict(kind: Any, document: Any) -> Any:
    """The document as an object of the package's, if it has every required field and no unknown one."""
    parsed = TypeAdapter(kind).validate_python(document)
    assert not [*unknown_in(parsed)], document
    return parsed


def unknown_in(value: object) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from value.model_extra or ()
        for _, inner in value:
            yield from unknown_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from unknown_in(inner)


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each with its name and strictly of its type."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] not in ("ping", "error"):
            strict(RawMessageStreamEvent, event)
        events.append(event)
    return events


def streamed(adapter: Adapter, content: object, **fields: Any) -> list[dict[str, Any]]:
    response = post(adapter, content, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


@pytest.fixture
def claude(adapter: Adapter) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=adapter.url, api_key="none", max_retries=0) as client:
        yield client
