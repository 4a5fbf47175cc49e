"""No body makes the adapter fail: whatever comes is answered, or refused with an OpenAI error."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
import pytest
import requests

from rest_adapter.openai.chat.schema import ChatRequest
from rest_adapter.openai.completions.schema import CompletionRequest
from rest_adapter.openai.decisions.schema import DecisionsRequest
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.support.examples import examples


NAMES = [
    *sorted(ChatRequest.model_fields),
    "tools",
    "tool_choice",
    "modalities",
    "audio",
    "store",
    "nothing",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(["data:,", "data:image/png;base64,AAAA", "auto", "text", "user", "\0"])
)
COMMANDS = (b"hang", b"abort", b"fail", b"unreachable", b"slow")  # of the fake service
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
PARTS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["text", "image_url", "image", "input_image", "refusal", "video"])
        | JSON
    },
    optional={
        "text": st.text(max_size=5) | JSON,
        "image_url": st.fixed_dictionaries({"url": st.text(max_size=9) | JSON}) | JSON,
        "image": JSON,
        "detail": st.sampled_from(["low", "high"]) | JSON,
        "min_pixels": JSON,
        "uuid": JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | JSON},
    optional={
        "content": st.text(max_size=9) | st.lists(PARTS, max_size=3) | JSON,
        "name": JSON,
        "refusal": JSON,
        "tool_calls": JSON,
    },
)
BODIES = st.builds(
    lambda body, more: body | more,
    st.fixed_dictionaries({"model": st.just("demo"), "messages": st.lists(MESSAGES, max_size=3)}),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
)
PROMPTS = (
    st.text(max_size=5)
    | st.lists(st.text(max_size=5), max_size=3)
    | st.lists(st.integers(-2, 2**33), max_size=3)
    | st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3)
    | JSON
)
COMPLETION_BODIES = st.builds(
    lambda body, more: body | more,
    st.fixed_dictionaries({"model": st.just("demo"), "prompt": PROMPTS}),
    st.dictionaries(
        st.sampled_from([*sorted(CompletionRequest.model_fields), "suffix"]), JSON, max_size=3
    ),
)
DECISION_PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["input_text", "input_image", "input_json", "text"]) | JSON},
    optional={"text": JSON, "image_url": JSON, "data": JSON, "detail": JSON},
)
CONTENT = st.text(max_size=5) | st.lists(DECISION_PARTS, max_size=2) | JSON
INPUTS = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["message", "function_call", "function_call_output", "custom_tool_call_output"]
        )
        | JSON
    },
    optional={
        "role": st.sampled_from(["user", "assistant", "developer"]) | JSON,
        "content": CONTENT,
        "call_id": st.just("c") | JSON,
        "name": st.text(max_size=3) | JSON,
        "arguments": st.text(max_size=3) | JSON,
        "output": CONTENT,
    },
)
OPTIONS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"value": JSON, "label": st.text(max_size=3) | JSON, "description": JSON}
    ),
    max_size=3,
)
QUESTIONS = st.fixed_dictionaries(
    {"type": st.sampled_from(["predicate", "choice", "score"]) | JSON},
    optional={
        "instructions": CONTENT,
        "choices": OPTIONS | JSON,
        "levels": OPTIONS | JSON,
        "name": JSON,
        "id": JSON,
    },
)
DECISION_BODIES = st.builds(
    lambda body, more: body | more,
    st.fixed_dictionaries(
        {
            "model": st.just("demo"),
            "input": st.text(max_size=5) | st.lists(INPUTS, max_size=3) | JSON,
            "questions": st.lists(QUESTIONS, max_size=3) | JSON,
        }
    ),
    st.dictionaries(
        st.sampled_from([*sorted(DecisionsRequest.model_fields), "stream", "temperature"]),
        JSON,
        max_size=3,
    ),
)


@pytest.fixture(scope="module")
def own_adapter():
    with open_adapter(max_media_mib=1) as adapter, requests.Session() as session:
        yield adapter, session


def check(
    own_adapter: tuple[Adapter, requests.Session], body: bytes, path: str = "chat/completions"
) -> None:
    assume(not any(command in body for command in COMMANDS))
    adapter, session = own_adapter
    response = session.post(f"{adapter.url}/v1/{path}", data=body, timeout=30)
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404, 413), (body, response.text)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)


FUZZ: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@given(body=BODIES)
@settings(max_examples=examples(80), **FUZZ)
def test_bodies_like_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode())


@given(body=COMPLETION_BODIES)
@settings(max_examples=examples(250), **FUZZ)
def test_bodies_like_completion_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode(), "completions")


@given(body=DECISION_BODIES)
@settings(max_examples=examples(250), **FUZZ)
def test_bodies_like_decision_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode(), "decisions")


@given(body=JSON)
@settings(max_examples=examples(60), **FUZZ)
def test_any_json(own_adapter: tuple[Adapter, requests.Session], body: object) -> None:
    check(own_adapter, json.dumps(body).encode())


@given(body=st.binary(max_size=80))
@settings(max_examples=examples(60), **FUZZ)
def test_any_bytes(own_adapter: tuple[Adapter, requests.Session], body: bytes) -> None:
    check(own_adapter, body)


@pytest.mark.full
@given(body=BODIES)
@settings(max_examples=5000, **FUZZ)
def test_many_bodies_like_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode())
