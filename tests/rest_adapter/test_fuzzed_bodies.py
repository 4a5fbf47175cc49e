"""Whatever JSON arrives, nobody gets a 500, and every refusal has OpenAI's body."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import requests

from rest_adapter.schema import ChatRequest
from tests.rest_adapter.conftest import Door


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["user", "text", "image_url", "data:,", "data:;base64,QQ==", "none"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PARTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image_url", "image", "input_image", "video", 1]),
        "text": VALUES,
        "image_url": st.one_of(VALUES, st.fixed_dictionaries({"url": VALUES, "detail": VALUES})),
        "image": VALUES,
        "detail": VALUES,
        "min_pixels": VALUES,
        "uuid": VALUES,
    },
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(st.sampled_from(["user", "system", "assistant", "tool"]), VALUES),
        "content": st.one_of(VALUES, st.lists(st.one_of(PARTS, VALUES), max_size=3)),
        "name": VALUES,
        "tool_calls": VALUES,
    },
)
VALID = st.just([{"role": "user", "content": "x"}])
FIELDS = [name for name in ChatRequest.model_fields if name not in ("model", "messages", "n")]
FIELDS += ["tools", "tool_choice", "response_format", "modalities", "store", "functions", "x"]
BODIES = st.builds(
    lambda model, messages, fields: {"model": model, "messages": messages} | fields,
    st.one_of(st.just("demo"), VALUES),
    st.one_of(VALID, st.lists(st.one_of(MESSAGES, VALUES), max_size=3), VALUES),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3),
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=st.one_of(BODIES, VALUES))
def test_no_body_is_a_defect(door: Door, body: object) -> None:
    assert_told(door.post(json.dumps(body).encode()))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.binary(max_size=64))
def test_no_bytes_are_a_defect(door: Door, body: bytes) -> None:
    assert_told(door.post(body))


def assert_told(response: requests.Response) -> None:
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
