"""Conversations that exceed the context window, with `truncation: "auto"`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import requests

from inference_service.grpc_api.tool_results import messages_in_order
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.openai.responses import truncation
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.openai.responses.test_answers import post, streamed
from tests.rest_adapter.openai.test_fuzz_bodies import FUZZ


CONTEXT_TOKENS = 400
"""The fake service counts characters."""
CALL = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "r" * 20}


def said(role: str, size: int, letter: str = "") -> dict[str, Any]:
    return {"role": role, "content": (letter or role[0]) * size}


@pytest.fixture(scope="module")
def adapter() -> Iterator[Adapter]:
    with open_adapter(response_truncation=True, response_store="memory") as opened:
        opened.seen.context_tokens = CONTEXT_TOKENS
        yield opened


def texts_of(adapter: Adapter) -> list[str]:
    return ["".join(part.text for part in m.parts) for m in adapter.seen.specs[-1].messages]


@pytest.mark.parametrize("stream", [False, True])
def test_the_oldest_exchanges_are_left_out(adapter: Adapter, stream: bool) -> None:
    items = [
        said("system", 30),
        said("user", 300, "1"),
        CALL,
        RESULT,
        said("assistant", 50),
        said("user", 60, "2"),
        said("assistant", 50),
        said("user", 70, "3"),
    ]
    asked: dict[str, Any] = {"input": items, "truncation": "auto", "instructions": "i" * 20}
    if stream:
        response = streamed(adapter, **asked)[-1]["response"]
    else:
        answer = post(adapter, **asked)
        assert answer.status_code == 200, answer.text
        response = answer.json()
    assert (response["truncation"], response["status"]) == ("auto", "completed")
    assert texts_of(adapter) == ["i" * 20, "s" * 30, "2" * 60, "a" * 50, "3" * 70]


def test_there_is_room_for_an_answer(adapter: Adapter) -> None:
    """Where many exchanges are too much, not each of them costs a try."""
    items = [said("user", 10, str(number % 10)) for number in range(60)]
    before = adapter.seen.calls
    assert post(adapter, input=items, truncation="auto").status_code == 200
    assert sum(map(len, texts_of(adapter))) == CONTEXT_TOKENS * 3 // 4
    assert adapter.seen.calls == before + 2
    assert post(adapter, input=items, truncation="auto", max_output_tokens=20).status_code == 200
    assert sum(map(len, texts_of(adapter))) == CONTEXT_TOKENS - 20


def test_a_conversation_that_is_far_too_long_is_answered(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time that grows with its length."""
    measured = 0
    size_of = truncation._size

    def counting(message: message_pb.Message) -> int:
        nonlocal measured
        measured += 1
        return size_of(message)

    monkeypatch.setattr(truncation, "_size", counting)
    items = [said("user", 10, str(number % 10)) for number in range(4000)]
    before = adapter.seen.calls
    assert post(adapter, input=items, truncation="auto").status_code == 200
    assert 0 < sum(map(len, texts_of(adapter))) < CONTEXT_TOKENS
    tries = adapter.seen.calls - before
    assert tries < 6
    assert measured <= 2 * tries * len(items)


@pytest.mark.parametrize("path", ["responses/render", "responses/input_tokens"])
def test_what_is_rendered_and_counted_is_what_would_be_sent(adapter: Adapter, path: str) -> None:
    items = [said("user", 300), said("user", 200)]
    asked = {"model": "demo", "input": items}
    url = f"{adapter.url}/v1/{path}"
    assert requests.post(url, json=asked, timeout=30).status_code == 400
    answer = requests.post(url, json=asked | {"truncation": "auto"}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert texts_of(adapter) == ["u" * 200]


def test_the_history_of_a_response_is_shortened_and_kept(adapter: Adapter) -> None:
    first = post(adapter, input=said("user", 250)["content"], store=True).json()
    second = post(
        adapter, input="x" * 200, previous_response_id=first["id"], truncation="auto", store=True
    )
    assert second.status_code == 200, second.text
    assert texts_of(adapter) == ["x" * 200]
    refused = post(adapter, input="y", previous_response_id=second.json()["id"])
    assert refused.status_code == 400, "nothing is left out unasked, and nothing was forgotten"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "items",
    [
        [said("user", 500)],
        [said("user", 20), said("user", 500)],
        [said("system", 500), said("user", 20)],
        [said("user", 20), CALL, RESULT | {"output": "r" * 500}],
    ],
)
def test_what_cannot_be_shortened_is_refused(
    adapter: Adapter, items: list[dict[str, Any]], stream: bool
) -> None:
    refused = post(adapter, input=items, truncation="auto", stream=stream)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "input"


def test_other_failures_are_not_repeated(adapter: Adapter) -> None:
    before = adapter.seen.calls
    asked = [said("user", 5), said("user", 4) | {"content": "fail INVALID_IMAGE"}]
    assert post(adapter, input=asked, truncation="auto").status_code == 400
    assert adapter.seen.calls == before + 1


def called(name: str) -> dict[str, Any]:
    return CALL | {"call_id": name}


def returned(name: str, size: int = 20) -> dict[str, Any]:
    return RESULT | {"call_id": name, "output": name * size}


def test_a_call_leaves_with_a_late_result(adapter: Adapter) -> None:
    items = [
        said("user", 150, "1"),
        called("a"),
        said("user", 100, "2"),
        returned("a", 100),
        said("user", 100, "3"),
    ]
    answer = post(adapter, input=items, truncation="auto")
    assert answer.status_code == 200, answer.text
    assert texts_of(adapter) == ["3" * 100]


def test_a_call_stays_with_a_result_behind_the_last_question(adapter: Adapter) -> None:
    late = [said("user", 100, "2"), called("a"), said("user", 100, "3"), returned("a", 90)]
    answer = post(adapter, input=[said("user", 150, "1"), *late], truncation="auto")
    assert answer.status_code == 200, answer.text
    assert texts_of(adapter) == ["2" * 100, "", "3" * 100, "a" * 90]
    too_long = [*late, said("assistant", 120)]
    assert post(adapter, input=too_long, truncation="auto").status_code == 400


ITEMS = st.lists(
    st.builds(said, st.sampled_from(["user", "assistant", "system"]), st.integers(1, 300)),
    max_size=8,
)


@given(items=ITEMS, last=st.integers(1, 100))
@settings(max_examples=40, **FUZZ)
def test_what_is_sent_is_the_end_of_the_conversation(
    adapter: Adapter, items: list[dict[str, Any]], last: int
) -> None:
    conversation = [*items, said("user", last)]
    response = post(adapter, input=conversation, truncation="auto")
    system = [item for item in conversation if item["role"] == "system"]
    must = sum(len(item["content"]) for item in (*system, conversation[-1]))
    if response.status_code == 400:
        assert must >= CONTEXT_TOKENS
        return
    sent = adapter.seen.specs[-1].messages
    kept = [m for m in sent if m.role != message_pb.ROLE_SYSTEM]
    others = [item["content"] for item in conversation if item["role"] != "system"]
    assert len(sent) - len(kept) == len(system)
    assert [m.parts[0].text for m in kept] == others[len(others) - len(kept) :]


@st.composite
def with_calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Conversations in which functions return at any time; some ids are used again after that."""
    items: list[dict[str, Any]] = []
    open_ids: list[str] = []
    for _ in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["user", "user", "assistant", "call", "call", "result"]))
        free = [name for name in "abc" if name not in open_ids]
        if kind == "call" and free:
            open_ids.append(draw(st.sampled_from(free)))
            items.append(called(open_ids[-1]))
        elif kind == "result" and open_ids:
            name = open_ids.pop(draw(st.integers(0, len(open_ids) - 1)))
            items.append(returned(name, draw(st.integers(1, 120))))
        elif kind in ("user", "assistant"):
            items.append(said(kind, draw(st.integers(1, 120))))
    return [*items, *map(returned, open_ids), said("user", draw(st.integers(1, 100)))]


@given(items=with_calls())
@settings(max_examples=60, **FUZZ)
def test_calls_and_results_leave_together(adapter: Adapter, items: list[dict[str, Any]]) -> None:
    assert post(adapter, "/input_tokens", input=items, truncation="disabled").status_code in (
        200,
        400,
    )
    whole = list(adapter.seen.specs[-1].messages)
    messages_in_order(whole)  # the service takes it
    answer = post(adapter, input=items, truncation="auto")
    kept = list(adapter.seen.specs[-1].messages)
    if answer.status_code == 400:
        last = max(i for i, m in enumerate(kept) if m.role == message_pb.ROLE_USER)
        started = sum(len(m.tool_calls) for m in kept[:last])
        ended = sum(m.role == message_pb.ROLE_TOOL for m in kept[:last])
        alone = sum(len(part.text) for m in kept[last:] for part in m.parts)
        assert alone >= CONTEXT_TOKENS or started > ended, "nothing more can be left out"
        return
    assert kept == whole[len(whole) - len(kept) :]
    messages_in_order(kept)


def test_without_the_setting_it_is_refused(storing_adapter: Adapter) -> None:
    for path in ("", "/input_tokens"):
        refused = post(storing_adapter, path, truncation="auto")
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "truncation"
        assert "--response-truncation" in refused.json()["error"]["message"]
