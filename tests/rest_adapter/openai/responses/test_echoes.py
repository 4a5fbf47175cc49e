"""What a response repeats of its request in every event is bounded."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from rest_adapter.openai.fields import LABELS, MAX_LABEL_CHARS
from rest_adapter.openai.responses.schema import ResponsesRequest
from tests.rest_adapter.conftest import Adapter


LONG = "mark" * 500
SCHEMA = {"type": "json_schema", "name": "s", "schema": {"type": "object"}}
NESTED: dict[str, dict[str, Any]] = {
    "metadata": {"metadata": {"a": LONG}},
    "metadata name": {"metadata": {LONG: "a"}},
    "text.format.description": {"text": {"format": SCHEMA | {"description": LONG}}},
    "text.format.name": {"text": {"format": SCHEMA | {"name": LONG}}},
    "reasoning.effort": {"reasoning": {"effort": LONG}},
    "reasoning.unknown": {"reasoning": {"note": LONG}},
    "tool_choice": {"tool_choice": {"type": "function", "name": LONG}},
    "include": {"include": [LONG]},
    "unknown": {"note": LONG},
}
OF_THE_PROMPT = {"instructions", "input"}
"""The service bounds them by the context window before the first event."""
CASES = NESTED | {
    name: {name: LONG} for name in ResponsesRequest.model_fields if name not in OF_THE_PROMPT
}


@pytest.mark.parametrize("case", CASES)
def test_no_text_of_any_length_is_repeated(adapter: Adapter, case: str) -> None:
    body = {"model": "demo", "input": "a", "stream": True} | CASES[case]
    answer = requests.post(f"{adapter.url}/v1/responses", json=body, timeout=30)
    assert answer.status_code in (200, 400, 404), answer.text
    assert LONG not in answer.text


BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "completions": {"prompt": "a"},
    "responses": {"input": "a"},
    "decisions": {
        "input": "a",
        "questions": [{"type": "predicate", "instructions": "a"}],
    },
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("path", BODIES)
def test_labels_are_bounded_everywhere(adapter: Adapter, path: str, name: str) -> None:
    body = {"model": "demo"} | BODIES[path]
    longest = 128 if path == "decisions" else MAX_LABEL_CHARS
    fitting = requests.post(
        f"{adapter.url}/v1/{path}", json=body | {name: "é" * longest}, timeout=30
    )
    assert fitting.status_code == 200, fitting.text
    long = requests.post(f"{adapter.url}/v1/{path}", json=body | {name: "é" * 513}, timeout=30)
    error = long.json()["error"]
    assert (long.status_code, error["param"]) == (400, name)
    assert "has 513 characters, but must have at most 512" in error["message"]


def test_each_wrong_pair_is_not_an_error_of_its_own(adapter: Adapter) -> None:
    """An error takes about a kilobyte."""
    pairs = {f"x{number}": number for number in range(20_000)}
    body = {"model": "demo", "input": "a", "metadata": pairs}
    answer = requests.post(f"{adapter.url}/v1/responses", json=body, timeout=30)
    assert answer.status_code == 400
    assert "20000 pairs, but at most 16" in answer.json()["error"]["message"]
