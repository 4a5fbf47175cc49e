"""Odd bodies, failures of the service, and clients that go away."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any
from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import requests

from qwenvl.errors import BY_REASON
from rest_adapter import reply
from rest_adapter.body import RequestBody
from rest_adapter.body_budget import BodyBudget, Holding
from rest_adapter.errors import of_reason
from rest_adapter.openai.responses import writer
from rest_adapter.openai.responses.schema import ResponsesRequest
from rest_adapter.openai.responses.store import ResponseStore, StoredResponse
from rest_adapter.reply import FREE_BYTES
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.rest_adapter.openai.responses.test_answers import call, post
from tests.rest_adapter.openai.test_fuzz_bodies import FUZZ, JSON, PARTS, check
from tests.rest_adapter.scripted_answers import script
from tests.support.examples import examples


NAMES = [
    *sorted(ResponsesRequest.model_fields),
    "background",
    "conversation",
    "moderation",
    "prompt",
    "response_format",
]
KINDS = [
    "message",
    "function_call",
    "function_call_output",
    "reasoning",
    "compaction",
    "item_reference",
    "web_search_call",
]
ITEMS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(KINDS) | JSON,
        "role": st.sampled_from(["user", "assistant", "developer"]) | JSON,
        "content": st.text(max_size=9) | st.lists(PARTS, max_size=3) | JSON,
        "id": st.sampled_from(["msg_1", "rs_1"]) | JSON,
        "call_id": st.sampled_from(["c1", "c2"]) | JSON,
        "name": st.sampled_from(["look"]) | JSON,
        "arguments": st.sampled_from(["{}", ""]) | JSON,
        "output": st.text(max_size=5) | st.lists(PARTS, max_size=2) | JSON,
        "summary": JSON,
        "encrypted_content": st.sampled_from(["qwenvl1.", "qwenvl1.AAAA"]) | JSON,
    },
)
TOOLS = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "web_search"]) | JSON},
    optional={"name": st.sampled_from(["look", "b"]) | JSON, "parameters": JSON, "strict": JSON},
)
BODIES = st.builds(
    lambda body, odd, more: body | odd | more,
    st.fixed_dictionaries(
        {
            "model": st.just("demo"),
            "input": st.text(max_size=5) | st.lists(ITEMS, min_size=1, max_size=4) | JSON,
        }
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "tools": st.lists(TOOLS, max_size=2),
            "tool_choice": st.sampled_from(["auto", "required"])
            | st.fixed_dictionaries(
                {"type": st.sampled_from(["function", "allowed_tools"])},
                optional={"name": JSON, "mode": JSON, "tools": st.lists(TOOLS, max_size=2) | JSON},
            ),
            "stream": st.booleans(),
            "text": st.fixed_dictionaries(
                {},
                optional={
                    "format": st.fixed_dictionaries(
                        {"type": st.sampled_from(["text", "json_object", "json_schema"])},
                        optional={"name": JSON, "schema": JSON, "strict": JSON},
                    )
                },
            ),
        },
    ),
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=2),
)


@pytest.fixture(scope="module")
def own_adapter():
    with (
        open_adapter(response_store="memory", max_media_mib=1) as adapter,
        requests.Session() as session,
    ):
        yield adapter, session


@given(body=BODIES)
@settings(max_examples=examples(80), **FUZZ)
def test_bodies_like_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode(), "responses")


@pytest.mark.full
@given(body=BODIES)
@settings(max_examples=5000, **FUZZ)
def test_many_bodies_like_requests(
    own_adapter: tuple[Adapter, requests.Session], body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode(), "responses")


@pytest.mark.parametrize("path", ["responses/input_tokens", "responses/compact"])
@given(body=BODIES)
@settings(max_examples=examples(60), **FUZZ)
def test_bodies_of_the_other_endpoints(
    own_adapter: tuple[Adapter, requests.Session], path: str, body: dict[str, Any]
) -> None:
    check(own_adapter, json.dumps(body).encode(), path)


@given(
    response_id=st.text(min_size=1, max_size=12),
    query=st.dictionaries(
        st.sampled_from(["stream", "starting_after", "limit", "after", "order"]),
        st.text(max_size=5) | st.integers(-(2**70), 2**70).map(str),
    ),
    rest=st.sampled_from(["", "/input_items", "/cancel"]),
)
@settings(max_examples=examples(100), **FUZZ)
def test_odd_ids_and_queries(
    own_adapter: tuple[Adapter, requests.Session],
    response_id: str,
    query: dict[str, str],
    rest: str,
) -> None:
    adapter, session = own_adapter
    name = quote(response_id, safe="")
    url = f"{adapter.url}/v1/responses/{name}{rest}"
    method = "POST" if rest == "/cancel" else "GET"
    answer = session.request(method, url, params=query, timeout=30)
    assert answer.status_code in (400, 404, 405), (url, answer.text)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", BY_REASON)
def test_every_reason_of_the_service(adapter: Adapter, reason: str, stream: bool) -> None:
    row = BY_REASON[reason]
    answer = post(adapter, input=f"fail {reason}", stream=stream)
    assert answer.status_code == row.http_status
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == (row.openai_type, row.openai_code)
    if row.http_status != 500:
        assert error["param"] == "temperature"


def test_a_deadline_in_a_stream() -> None:
    with open_adapter(request_timeout_s=0.3) as adapter:
        answer = post(adapter, input="hang", stream=True)
        assert '"code":"timeout"' in answer.text
        assert "response.failed" in answer.text
        assert "[DONE]" not in answer.text


def test_an_aborted_response_is_cancelled(adapter: Adapter) -> None:
    whole = post(adapter, input="abort").json()
    assert (whole["status"], whole["output"][-1]["status"]) == ("cancelled", "incomplete")
    assert '"status":"cancelled"' in post(adapter, input="abort", stream=True).text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_the_call(adapter: Adapter, stream: bool) -> None:
    body = json.dumps({"model": "demo", "input": "hang", "stream": stream}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", adapter.port), timeout=15) as client:
        client.sendall(head.encode() + body)
        wait_until(lambda: adapter.seen.running == 1)
    wait_until(lambda: adapter.seen.running == 0)
    assert adapter.seen.cancelled == 1


def test_separators_within_a_text_do_not_split_a_line(storing_adapter: Adapter) -> None:
    text = "a\u2028b\u2029c\x85d\n\ne"
    answer = post(storing_adapter, input=text, stream=True)
    lines = [line for line in answer.content.decode().splitlines() if line.startswith("data: {")]
    last = json.loads(lines[-1].removeprefix("data: "))["response"]
    assert last["output"][0]["content"][0]["text"] == text
    path, query = f"/{last['id']}", {"stream": "true"}
    replayed = call(storing_adapter, "GET", path, params=query)
    assert replayed.content == answer.content


def test_pages_of_this_machine_may_delete(storing_adapter: Adapter) -> None:
    response_id = post(storing_adapter).json()["id"]
    headers = {"origin": "http://localhost:3000", "access-control-request-method": "DELETE"}
    url = f"{storing_adapter.url}/v1/responses/{response_id}"
    assert requests.options(url, headers=headers, timeout=10).status_code == 200
    foreign = {"origin": "https://evil.example", "authorization": "Bearer none"}
    assert requests.delete(url, headers=foreign, timeout=10).status_code == 403


def test_a_conversation_is_as_bounded_as_a_body() -> None:
    limits: dict[str, Any] = {"max_body_mib": 1, "max_text_mib": 1, "body_budget_mib": 4}
    with open_adapter(response_store="memory", **limits) as adapter:
        text = "x" * 400_000
        first = post(
            adapter, input=[{"role": "user", "content": text}, {"role": "user", "content": "a"}]
        )
        second = post(adapter, input=text[:9], previous_response_id=first.json()["id"])
        assert second.status_code == 200
        third = post(
            adapter,
            input=[{"role": "user", "content": text}, {"role": "user", "content": "b"}],
            previous_response_id=second.json()["id"],
        )
        fourth = post(
            adapter,
            input=[{"role": "user", "content": text}, {"role": "user", "content": "c"}],
            previous_response_id=third.json()["id"],
        )
        last = post(adapter, input="d", previous_response_id=fourth.json()["id"])
        assert last.status_code == 413
        assert "--max-body-mib" in last.json()["error"]["message"]


def test_a_response_that_cannot_be_sent_for_want_of_memory_is_stored(
    storing_adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise of_reason("QUEUE_FULL", "no room", retry_after_s=1)

    stored: list[str] = []
    put = ResponseStore.put

    async def noted(self: ResponseStore, caller: str, response: StoredResponse) -> bool:
        stored.append(response.id)
        return await put(self, caller, response)

    monkeypatch.setattr(RequestBody, "take_for_answer", refuse)
    monkeypatch.setattr(reply, "_ROOM_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ResponseStore, "put", noted)
    text = "x" * (FREE_BYTES + 1)
    answer = post(storing_adapter, input=script(text))
    assert (answer.status_code, answer.json()["error"]["message"]) == (429, "no room")
    [response_id] = stored
    found = call(storing_adapter, "GET", f"/{response_id}").json()
    assert (found["status"], found["output"][0]["content"][0]["text"]) == ("completed", text)


@pytest.mark.parametrize("stream", [True, False])
def test_frames_with_a_large_request_are_written_beside_the_event_loop(
    storing_adapter: Adapter, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    frame, threads = writer._frame, set()

    def noted(event: dict[str, Any], number: int) -> bytes:
        if "response" in event:
            threads.add(threading.current_thread().name.partition("_")[0])
        return frame(event, number)

    monkeypatch.setattr(writer, "_frame", noted)
    parameters = {"type": "object", "description": "x" * FREE_BYTES}
    tool = {"type": "function", "name": "look", "parameters": parameters}
    answer = post(storing_adapter, tools=[tool], stream=stream)
    assert answer.status_code == 200
    assert threads == {"body"}


@pytest.mark.parametrize("dialect", ["responses", "chat"])
def test_bodies_do_not_end_a_stream(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    """What a stream grows by has room when bodies have taken all of it."""
    take, refused = BodyBudget.take, []

    def full(self: BodyBudget, holding: Holding, count: int) -> None:
        if count > FREE_BYTES:
            refused.append(count)
            raise self.full("There is no room")
        take(self, holding, count)

    monkeypatch.setattr(BodyBudget, "take", full)
    if dialect == "responses":
        answer = post(adapter, input="x" * 1000, stream=True, top_logprobs=2)
        assert answer.text.count("event: response.completed\n") == 1
    else:
        answer = adapter.ask(script("x" * FREE_BYTES), stream=True)
        assert answer.text.endswith("data: [DONE]\n\n")
    assert refused
    assert "QUEUE_FULL" not in answer.text
    assert "rate_limit" not in answer.text


def test_many_references_are_refused(adapter: Adapter) -> None:
    items = [{"type": "item_reference", "id": f"msg_{number}"} for number in range(600)]
    answer = post(adapter, input=items)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input"
