"""No body makes the adapter fail: whatever comes is answered, or refused with one of Anthropic's errors."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
import pytest
import requests

from rest_adapter.anthropic.messages.schema import MessagesRequest
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.support.examples import examples


COMMANDS = (b"hang", b"abort", b"fail", b"unreachable", b"slow", b"script")  # of the fake service
TYPES = [
    *("text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document"),
    *("base64", "url", "file", "enabled", "auto", "tool", "json_schema", "custom"),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=12)
    | st.sampled_from(["data:,", "AAAA", "user", "\0", "https://h/"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
TYPE = st.sampled_from(TYPES) | JSON
SOURCES = st.fixed_dictionaries(
    {"type": TYPE}, optional={"data": JSON, "url": JSON, "file_id": JSON, "media_type": JSON}
)
BLOCKS = st.fixed_dictionaries(
    {"type": TYPE},
    optional={
        "text": st.text(max_size=5) | JSON,
        "source": SOURCES | JSON,
        "transformations": st.fixed_dictionaries({"oversized_image": JSON}) | JSON,
        "id": st.just("c") | JSON,
        "name": st.just("f") | JSON,
        "input": JSON,
        "tool_use_id": st.just("c") | JSON,
        "content": st.text(max_size=5) | st.lists(st.fixed_dictionaries({"type": TYPE})) | JSON,
        "is_error": JSON,
        "thinking": st.text(max_size=5) | JSON,
        "cache_control": JSON,
    },
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]) | JSON},
    optional={"content": st.text(max_size=9) | st.lists(BLOCKS, max_size=3) | JSON},
)
OBJECTS = st.fixed_dictionaries(
    {"type": TYPE},
    optional={
        "name": st.just("f") | JSON,
        "input_schema": JSON,
        "schema": JSON,
        "budget_tokens": JSON,
        "format": JSON,
        "effort": JSON,
    },
)
NAMES = [*sorted(MessagesRequest.model_fields), "container", "metadata", "mcp_servers", "nothing"]
BODIES = st.builds(
    lambda body, more: body | more,
    st.fixed_dictionaries(
        {
            "model": st.just("demo"),
            "max_tokens": st.just(9),
            "messages": st.lists(MESSAGES, max_size=3),
        }
    ),
    st.dictionaries(
        st.sampled_from(NAMES), JSON | OBJECTS | st.lists(OBJECTS, max_size=2), max_size=3
    ),
)
FUZZ: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.fixture(scope="module")
def own_adapter():
    with open_adapter(max_media_mib=1) as adapter, requests.Session() as session:
        yield adapter, session


def check(own_adapter: tuple[Adapter, requests.Session], body: bytes) -> None:
    assume(not any(command in body for command in COMMANDS))
    adapter, session = own_adapter
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        response = session.post(adapter.url + path, data=body, timeout=30)
        if response.status_code == 200:
            continue
        assert response.status_code in (400, 404, 413), (body, response.text)
        document = response.json()
        assert document["type"] == "error"
        assert document["error"]["type"].endswith(("_error", "_large"))
        assert document["error"]["message"]


@given(body=BODIES)
@settings(max_examples=examples(60), **FUZZ)
def test_bodies_like_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode())


@given(body=JSON)
@settings(max_examples=examples(40), **FUZZ)
def test_any_json(own_adapter: tuple[Adapter, requests.Session], body: object) -> None:
    check(own_adapter, json.dumps(body).encode())


@pytest.mark.full
@given(body=BODIES)
@settings(max_examples=5000, **FUZZ)
def test_many_bodies_like_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode())
