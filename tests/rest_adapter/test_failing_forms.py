"""An answer that cannot go on in its form (a regular expression that explodes late) ends with a clear error."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import requests

from tests.rest_adapter.conftest import Adapter
from tests.support.openapi import events_of


LATE = "fail-after 3 CONSTRAINT_FAILED"
ASK: Any = [{"role": "user", "content": LATE}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": ASK, "guided_regex": "a+"},
    "/v1/responses": {"input": LATE, "structured_outputs": {"regex": "a+"}},
    "/v1/messages": {"messages": ASK, "max_tokens": 50},
}


def post(adapter: Adapter, path: str, *, stream: bool) -> requests.Response:
    body = {"model": "demo", "stream": stream} | BODIES[path]
    return requests.post(adapter.url + path, json=body, timeout=30)


@pytest.mark.parametrize("path", BODIES)
def test_without_a_stream_it_is_422(adapter: Adapter, path: str) -> None:
    response = post(adapter, path, stream=False)
    assert response.status_code == 422
    error = response.json()["error"]
    assert "CONSTRAINT_FAILED" in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error.get("code", "constraint_failed") == "constraint_failed"
    assert "retry-after" not in response.headers


def test_a_stream_of_a_chat_ends_with_the_error(adapter: Adapter) -> None:
    response = post(adapter, "/v1/chat/completions", stream=True)
    assert response.status_code == 200
    *chunks, last = events_of(response.text)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == LATE[:3]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)
    assert last["error"]["code"] == "constraint_failed"
    assert "[DONE]" not in response.text


def test_the_python_sdk_raises_it(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="demo", messages=ASK, stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "constraint_failed"


def test_a_stream_of_a_response_fails(adapter: Adapter) -> None:
    events = events_of(post(adapter, "/v1/responses", stream=True).text)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["error"]["code"] == "constraint_failed"
    assert events[-1]["response"]["status"] == "failed"


def test_a_stream_of_a_message_ends_with_the_error(adapter: Adapter) -> None:
    events = events_of(post(adapter, "/v1/messages", stream=True).text)
    assert events[-1]["type"] == "error"
    assert "CONSTRAINT_FAILED" in events[-1]["error"]["message"]
    assert "message_stop" not in {event["type"] for event in events}
