"""The events of a stream: their order, and that every split of an answer gives the same one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.anthropic.messages.stream import EventWriter
from tests.rest_adapter.anthropic.conftest import events_of, post, streamed
from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.scripted_answers import call, script
from tests.support.examples import examples


def blocks_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content, put together as clients do; checks that blocks follow each other."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert not is_open
                assert event["index"] == len(blocks)
                blocks.append(dict(event["content_block"]) | {"json": ""})
            case "content_block_delta":
                delta = event["delta"]
                assert is_open
                assert event["index"] == len(blocks) - 1
                [name] = delta.keys() - {"type"}
                target = "json" if name == "partial_json" else name
                assert delta[name]
                blocks[-1][target] += delta[name]
            case "content_block_stop":
                assert is_open
                assert event["index"] == len(blocks) - 1
        is_open = event["type"] in ("content_block_start", "content_block_delta")
    assert not is_open
    for block in blocks:
        pieces = block.pop("json")
        if block["type"] == "tool_use":
            assert block["input"] == {}
            block["input"] = json.loads(pieces or "{}")
    return blocks


def test_the_order_of_events(adapter: Adapter) -> None:
    question = script(
        {"reasoning": "Hm."},
        "a",
        "b",
        call(0, '{"x":1}', "call_1", "f"),
        reason="TOOL_CALLS",
        usage={"prompt_tokens": 9, "completion_tokens": 4, "cached_tokens": 2},
    )
    events = streamed(adapter, question)
    kinds = [(event["type"], event.get("delta", {}).get("type")) for event in events]
    assert kinds == [
        ("message_start", None),
        ("ping", None),
        ("content_block_start", None),
        ("content_block_delta", "thinking_delta"),
        ("content_block_delta", "signature_delta"),
        ("content_block_stop", None),
        ("content_block_start", None),
        ("content_block_delta", "text_delta"),
        ("content_block_delta", "text_delta"),
        ("content_block_stop", None),
        ("content_block_start", None),
        ("content_block_delta", "input_json_delta"),
        ("content_block_stop", None),
        ("message_delta", None),
        ("message_stop", None),
    ]
    start, end = events[0]["message"], events[-2]
    assert (start["content"], start["stop_reason"]) == ([], None)
    assert start["usage"]["input_tokens"] == 7
    assert start["usage"]["output_tokens"] == 0
    assert end["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert end["usage"]["input_tokens"] == 7
    assert end["usage"]["cache_read_input_tokens"] == 2
    assert end["usage"]["output_tokens"] == 4


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("reason", "end", "expected"),
    [
        ("STOP", {}, ("end_turn", None)),
        ("STOP", {"stop_detail": {"eos_token_id": 3}}, ("end_turn", None)),
        ("STOP", {"stop_detail": {"stop_string": "!"}}, ("stop_sequence", "!")),
        ("LENGTH", {}, ("max_tokens", None)),
        ("CONTEXT_LENGTH", {}, ("model_context_window_exceeded", None)),
        ("TOOL_CALLS", {}, ("tool_use", None)),
    ],
)
def test_reasons_to_stop(
    adapter: Adapter, stream: bool, reason: str, end: dict[str, Any], expected: tuple[str, str]
) -> None:
    question = script("x", reason=reason, **end)
    events = streamed(adapter, question) if stream else []
    found = events[-2]["delta"] if stream else post(adapter, question).json()
    assert (found["stop_reason"], found["stop_sequence"]) == expected


@pytest.mark.parametrize("stream", [True, False])
def test_a_forced_call_is_a_use_of_a_tool(adapter: Adapter, stream: bool) -> None:
    """Services may say `stop` of a call that was forced by name."""
    question = script(call(0, "{}", "call_1", "f"), reason="STOP")
    if stream:
        assert streamed(adapter, question)[-2]["delta"]["stop_reason"] == "tool_use"
    else:
        assert post(adapter, question).json()["stop_reason"] == "tool_use"


def test_an_empty_answer_is_one_empty_text(adapter: Adapter) -> None:
    assert post(adapter, script()).json()["content"] == [{"type": "text", "text": ""}]
    assert blocks_of(streamed(adapter, script())) == [{"type": "text", "text": ""}]


def test_thinking_can_be_left_out(adapter: Adapter) -> None:
    question = script({"reasoning": "Hm."}, "Yes.")
    thinking = {"type": "adaptive", "display": "omitted"}
    whole = post(adapter, question, thinking=thinking)
    events = streamed(adapter, question, thinking=thinking)
    for content in (whole.json()["content"], blocks_of(events)):
        assert content[0]["thinking"] == ""
        assert content[0]["signature"]
        assert content[1]["text"] == "Yes."
    assert "Hm." not in whole.text
    assert "Hm." not in json.dumps(events)


def test_a_call_that_was_cut_off(adapter: Adapter) -> None:
    question = script(
        call(0, '{"a": [1, 2], "b": "to', "call_1", "f"), call(1, "", "c", "g"), reason="LENGTH"
    )
    message = post(adapter, question).json()
    assert message["stop_reason"] == "max_tokens"
    first, second = message["content"]
    assert first["input"]["a"] == [1, 2]
    assert second["input"] == {}


PIECES = st.lists(
    st.tuples(st.sampled_from(["reasoning", "text", "call"]), st.text(min_size=1, max_size=6)),
    max_size=6,
)


def deltas_of(pieces: list[tuple[str, str]], cuts: list[int]) -> list[generation_pb.Delta]:
    """Deltas of some pieces of an answer, each cut in two at one of the places."""
    deltas, calls = [], 0
    for position, (kind, text) in enumerate(pieces):
        place = cuts[position % len(cuts)] % (len(text) + 1) if cuts else 0
        if kind != "call":
            for half in filter(None, (text[:place], text[place:])):
                deltas.append(generation_pb.Delta())
                setattr(deltas[-1], kind, half)
            continue
        arguments = json.dumps({"x": text})
        first = generation_pb.ToolCallDelta(
            index=calls, id=f"call_{calls}", name="f", arguments_json=arguments[:place]
        )
        rest = generation_pb.ToolCallDelta(index=calls, arguments_json=arguments[place:])
        deltas += [generation_pb.Delta(tool_calls=[first]), generation_pb.Delta(tool_calls=[rest])]
        calls += 1
    return deltas


def rendered(deltas: list[generation_pb.Delta]) -> list[dict[str, Any]]:
    event = chat_pb.StreamChatCompletionResponse
    writer = EventWriter(omits_thinking=False, tells_writes=False)
    finished = generation_pb.Finished(reason=usage_pb.FINISH_REASON_STOP)
    events = [event(started=generation_pb.Started(request_id="r", model="m"))]
    events += [event(delta=delta) for delta in deltas]
    events += [event(finished=finished), event(usage=usage_pb.Usage())]
    return events_of(b"".join(writer.render(one) for one in events).decode())


def merged(deltas: list[generation_pb.Delta]) -> list[generation_pb.Delta]:
    """All deltas as one, if their kinds come in the order of its fields."""
    whole = generation_pb.Delta()
    for delta in deltas:
        whole.reasoning += delta.reasoning
        whole.text += delta.text
        whole.tool_calls.extend(delta.tool_calls)
    return [whole]


@given(PIECES, st.lists(st.integers(0, 99), max_size=3))
@settings(max_examples=examples(100), deadline=None)
def test_any_split_gives_the_same_content(pieces: list[tuple[str, str]], cuts: list[int]) -> None:
    expected = blocks_of(rendered(deltas_of(pieces, [])))
    assert blocks_of(rendered(deltas_of(pieces, cuts))) == expected
    order = [kind for kind, _ in pieces]
    if order == sorted(order, key=["reasoning", "text", "call"].index):
        assert blocks_of(rendered(merged(deltas_of(pieces, cuts)))) == expected
