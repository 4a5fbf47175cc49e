"""Server-sent events that every client can read: one line for each event, whatever separates lines."""

from __future__ import annotations

import json

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import requests

from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.raw_http import CHAT


# All at which `str.splitlines` splits.
SEPARATORS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def body_of(text: str) -> dict:
    messages = [{"role": "user", "content": text}]
    return {"model": "demo", "stream": True, "messages": messages}


def text_in(lines: list[str]) -> str:
    """The text in lines of events, as a simple client reads them."""
    assert all(line == "" or line.startswith("data: ") for line in lines), lines
    chunks = [line.removeprefix("data: ") for line in lines if line]
    assert chunks.pop() == "[DONE]"
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators_do_not_split_events(adapter: Adapter, separator: str) -> None:
    text = f"a{separator}b{separator}\\u2028"
    response = requests.post(adapter.url + CHAT, json=body_of(text), timeout=10)
    assert text_in(response.content.decode().splitlines()) == text
    with httpx.stream("POST", adapter.url + CHAT, json=body_of(text), timeout=10) as streamed:
        assert text_in(list(streamed.iter_lines())) == text
    with requests.post(adapter.url + CHAT, json=body_of(text), stream=True, timeout=10) as raw:
        assert text_in(list(raw.iter_lines(decode_unicode=True))) == text


@settings(max_examples=30, deadline=None)
@given(st.text(st.sampled_from(SEPARATORS + '\\"u2028é日😀\0'), min_size=1, max_size=20))
def test_any_text_comes_back(shared_adapter: Adapter, text: str) -> None:
    response = requests.post(shared_adapter.url + CHAT, json=body_of("=" + text), timeout=10)
    assert text_in(response.content.decode().splitlines()) == "=" + text


def test_separators_in_an_error_event(adapter: Adapter) -> None:
    response = requests.post(adapter.url + CHAT, json=body_of("fail-after 3"), timeout=10)
    last = response.content.decode().splitlines()[-2]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == "overloaded"
    assert error["request_id"] == response.headers["x-request-id"]
