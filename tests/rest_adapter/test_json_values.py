"""JSON that can be read, but not written again, is refused with its place, in every API."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.rest_adapter.conftest import Adapter


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


DEEP = nested(400)
ASK = {"role": "user", "content": "hi"}
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
FUNCTION = {"name": "f", "parameters": DEEP}
CALL = {"id": "c", "function": {"name": "f", "arguments": DEEP}}
USE = {"type": "tool_use", "id": "c", "name": "f", "input": DEEP}
FORM = {"type": "json_schema", "schema": DEEP}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"tools": [{"function": FUNCTION}]}, "tools[0].function.parameters"),
        (
            CHAT,
            {"messages": [ASK, {"role": "assistant", "tool_calls": [CALL]}]},
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": FORM}},
            "response_format",
        ),
        (CHAT, {"structured_outputs": {"json": DEEP}}, "structured_outputs.json"),
        (CHAT, {"guided_json": DEEP}, "guided_json"),
        (MESSAGES, {"tools": [{"name": "f", "input_schema": DEEP}]}, "tools.0.input_schema"),
        (MESSAGES, {"output_config": {"format": FORM}}, "output_config.format.schema"),
        (MESSAGES, {"output_format": FORM}, "output_format.schema"),
        (
            MESSAGES,
            {"messages": [ASK, {"role": "assistant", "content": [USE]}, ASK]},
            "messages.1.content.0.input",
        ),
        (RESPONSES, {"tools": [{"type": "function", **FUNCTION}]}, "tools[0].parameters"),
        (RESPONSES, {"text": {"format": {"name": "x", **FORM}}}, "text.format.schema"),
    ],
)
def test_what_cannot_be_written(
    adapter: Adapter, path: str, fields: dict[str, Any], param: str
) -> None:
    base: dict[str, Any] = {"model": "demo"}
    base |= {"input": "hi"} if path == RESPONSES else {"messages": [ASK], "max_tokens": 9}
    response = requests.post(adapter.url + path, json=base | fields, timeout=30)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert "nested too deeply" in error["message"]
    assert param in (error.get("param"), error["message"].split("'")[1])
    assert not adapter.seen.calls


def test_what_is_nested_as_deep_as_it_may_be(adapter: Adapter) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": nested(200)}}
    assert adapter.ask(tools=[tool]).status_code == 200
