"""Anthropic's own client, unchanged: its objects, its stream helper, its exceptions."""

from __future__ import annotations

import base64
from typing import Any

import anthropic
from anthropic import Anthropic
from anthropic.types import Message, MessageTokensCount
from pydantic import BaseModel
import pytest

from tests.rest_adapter.anthropic.conftest import post, strict
from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.scripted_answers import call, script


TOOL: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
PNG = b"\x89PNG and more"


def ask(client: Anthropic, content: Any, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    return client.messages.create(model="demo", max_tokens=64, messages=messages, **fields)


def test_an_answer(claude: Anthropic, adapter: Adapter) -> None:
    message = ask(claude, "Über 图片 🖼️!")
    assert isinstance(message, Message)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "demo")
    [block] = message.content
    assert block.type == "text"
    assert block.text == "Über 图片 🖼️!"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    used = message.usage
    assert (used.input_tokens, used.cache_read_input_tokens) == (7, 3)
    assert used.cache_creation_input_tokens == 0
    assert used.output_tokens == len(block.text)
    assert adapter.spec.sampling.max_tokens == 64
    assert message._request_id == message.id.removeprefix("msg_")


@pytest.mark.parametrize("stream", [False, True])
def test_no_token_fills_the_cache_alone(claude: Anthropic, adapter: Adapter, stream: bool) -> None:
    answer = script({"reasoning": "hm"}, {"text": "no"}, call(0, "{}", "c", "weather"))
    asked: Any = {"model": "demo", "max_tokens": 0, "tools": [TOOL], **MARK}
    asked["messages"] = [{"role": "user", "content": answer}]
    if stream:
        with claude.messages.stream(**asked) as events:
            message: Any = events.get_final_message()
    else:
        message = claude.messages.create(**asked)
    assert (message.content, message.stop_reason) == ([], "max_tokens")
    used = message.usage
    assert (used.output_tokens, used.output_tokens_details.thinking_tokens) == (0, 0)
    assert adapter.spec.sampling.max_tokens == 1
    asked["messages"] = [said(TEXT)]
    assert claude.messages.create(**asked).usage.cache_creation_input_tokens == 2


MARK: Any = {"cache_control": {"type": "ephemeral"}}
TEXT = {"type": "text", "text": "x"}
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({}, 0),
        ({"cache_control": None}, 0),
        ({"messages": [said({**TEXT, "cache_control": None})]}, 0),
        (MARK, 2),
        ({"system": [{**TEXT, **MARK}]}, 2),
        ({"tools": [{**TOOL, **MARK}]}, 2),
        ({"messages": [said(TEXT), said(TEXT, role="assistant"), said({**TEXT, **MARK})]}, 2),
        ({"messages": [said(TEXT), said({**CALL, **MARK}, role="assistant"), said(TEXT)]}, 2),
        (
            {
                "messages": [
                    said(TEXT),
                    said(CALL, role="assistant"),
                    said({"type": "tool_result", "tool_use_id": "t", "content": [TEXT | MARK]}),
                ]
            },
            2,
        ),
    ],
)
def test_what_is_written_to_the_cache_is_told_to_those_that_mark_it(
    claude: Anthropic, stream: bool, fields: dict[str, Any], written: int
) -> None:
    body: Any = {"model": "demo", "max_tokens": 9, "messages": [said(TEXT)], **fields}
    extra = {"cache_control": body.pop("cache_control", None)}
    if stream:
        with claude.messages.stream(**body, extra_body=extra) as events:
            used = events.get_final_message().usage
    else:
        used = claude.messages.create(**body, extra_body=extra).usage
    assert used.cache_creation_input_tokens == written
    assert (used.input_tokens, used.cache_read_input_tokens) == (7 - written, 3)


def test_every_answer_is_strictly_of_the_type(adapter: Adapter) -> None:
    questions = [
        "x",
        script({"reasoning": "Hm."}, "Yes.", call(0, "{}", "call_1", "weather")),
        script(reason="CONTEXT_LENGTH"),
    ]
    for question in questions:
        strict(Message, post(adapter, question).json())


def test_reasoning_text_and_tools(claude: Anthropic) -> None:
    question = script(
        {"reasoning": "Let me "},
        {"reasoning": "look."},
        "I ask.",
        call(0, '{"city": ', "call_1", "weather"),
        call(0, '"Köln"}'),
        call(1, "", "call_2", "weather"),
        reason="TOOL_CALLS",
        usage={"prompt_tokens": 9, "completion_tokens": 8, "reasoning_tokens": 5},
    )
    message = ask(claude, question, tools=[TOOL])
    thinking, text, first, second = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "Let me look.")
    assert thinking.signature
    assert text.text == "I ask."
    assert (first.id, first.name, first.input) == ("call_1", "weather", {"city": "Köln"})
    assert (second.id, second.input) == ("call_2", {})
    assert message.stop_reason == "tool_use"
    assert message.usage.output_tokens_details.thinking_tokens == 5
    with claude.messages.stream(
        model="demo",
        max_tokens=64,
        messages=[{"role": "user", "content": question}],
        tools=[TOOL],
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [block.model_dump() for block in final.content] == [
        block.model_dump() for block in message.content
    ]
    assert (final.stop_reason, final.usage.output_tokens) == ("tool_use", 8)
    assert {"thinking", "text", "input_json", "signature"} <= {*kinds}


def test_the_stream_helper(claude: Anthropic) -> None:
    with claude.messages.stream(
        model="demo", max_tokens=64, messages=[{"role": "user", "content": "some text"}]
    ) as stream:
        assert "".join(stream.text_stream) == "some text"
        final = stream.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.input_tokens == 7
    assert final.usage.output_tokens == len("some text")


async def test_the_asynchronous_client(adapter: Adapter) -> None:
    question: Any = {"role": "user", "content": "some text"}
    async with (
        anthropic.AsyncAnthropic(base_url=adapter.url, api_key="none") as client,
        client.messages.stream(model="demo", max_tokens=9, messages=[question]) as stream,
    ):
        assert await stream.get_final_text() == "some text"


def test_images(claude: Anthropic, adapter: Adapter) -> None:
    data = base64.b64encode(PNG).decode()
    ask(
        claude,
        [
            {"type": "text", "text": "Compare."},
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/jpeg", "data": data},
                "transformations": {"oversized_image": "error"},
            },
            {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.jpg"}},
        ],
    )
    text, first, second = adapter.spec.messages[0].parts
    assert text.text == "Compare."
    assert first.image.data == PNG
    assert second.image.uri == "https://example.com/cat.jpg"
    assert (first.image.oversized, second.image.oversized) == (2, 0)


def test_an_answer_goes_back_as_it_came(claude: Anthropic, adapter: Adapter) -> None:
    question = script(
        {"reasoning": "Hm."}, "I ask.", call(0, '{"city":"Ulm"}', "call_1", "weather")
    )
    message = ask(claude, question)
    result: Any = {"type": "tool_result", "tool_use_id": "call_1", "content": "Rain."}
    history: Any = [
        {"role": "user", "content": "Weather?"},
        message.to_param(),
        {"role": "user", "content": [result]},
    ]
    claude.messages.create(model="demo", max_tokens=9, messages=history, tools=[TOOL])
    _, answer, tool = adapter.spec.messages
    assert answer.reasoning == "Hm."
    assert answer.parts[0].text == "I ask."
    assert answer.tool_calls[0].arguments_json == '{"city":"Ulm"}'
    assert (tool.tool_call_id, tool.parts[0].text) == ("call_1", "Rain.")


def test_tokens_are_counted(claude: Anthropic, adapter: Adapter) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.jpg"}}
    content: Any = [{"type": "text", "text": "What is this?"}, image]
    counted = claude.messages.count_tokens(
        model="demo", messages=[{"role": "user", "content": content}], tools=[TOOL]
    )
    seen = adapter.spec
    used = ask(claude, content, tools=[TOOL]).usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens
    assert seen.messages == adapter.spec.messages
    assert seen.tools == adapter.spec.tools
    strict(MessageTokensCount, post(adapter, path="/v1/messages/count_tokens").json())


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("INVALID_IMAGE", anthropic.BadRequestError),
        ("UNAUTHENTICATED", anthropic.AuthenticationError),
        ("PERMISSION_DENIED", anthropic.PermissionDeniedError),
        ("MODEL_NOT_FOUND", anthropic.NotFoundError),
        ("REQUEST_ID_IN_USE", anthropic.ConflictError),
        ("MESSAGE_TOO_LARGE", anthropic.APIStatusError),
        ("RATE_LIMIT_EXCEEDED", anthropic.RateLimitError),
        ("INTERNAL", anthropic.InternalServerError),
        ("MODEL_LOADING", anthropic.InternalServerError),
        ("DEADLINE_EXCEEDED", anthropic.InternalServerError),
        ("QUEUE_FULL", anthropic.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_error_classes(
    claude: Anthropic, reason: str, error: type[anthropic.APIStatusError], stream: bool
) -> None:
    with pytest.raises(error) as caught:
        ask(claude, f"fail {reason}", stream=stream)
    assert caught.value.request_id
    assert caught.value.type is not None
    if reason == "QUEUE_FULL":
        assert caught.value.status_code == 529


def test_an_error_within_a_stream(claude: Anthropic) -> None:
    events = ask(claude, "fail-after 3", stream=True)
    got: list[Any] = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        got.extend(events)
    deltas = [event.delta.text for event in got if event.type == "content_block_delta"]
    assert "".join(deltas) == "fai"
    assert caught.value.type == "overloaded_error"


@pytest.mark.parametrize("reason", ["REQUEST_ID_IN_USE", "INTERNAL", "DEADLINE_EXCEEDED"])
def test_the_client_does_not_repeat_what_is_useless(adapter: Adapter, reason: str) -> None:
    with (
        Anthropic(base_url=adapter.url, api_key="none", max_retries=2) as client,
        pytest.raises(anthropic.APIStatusError),
    ):
        ask(client, f"fail {reason}")
    assert adapter.seen.calls == 1


def test_older_clients_sample(adapter: Adapter) -> None:
    assert post(adapter, temperature=0.5, top_p=0.9, top_k=5).status_code == 200
    sampling = adapter.spec.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 5)


def test_the_client_for_beta_features(claude: Anthropic, adapter: Adapter) -> None:
    message = claude.beta.messages.create(
        model="demo",
        max_tokens=9,
        messages=[{"role": "user", "content": "some text"}],
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert [block.text for block in message.content if block.type == "text"] == ["some text"]
    counted = claude.beta.messages.count_tokens(
        model="demo", messages=[{"role": "user", "content": "some text"}]
    )
    assert counted.input_tokens == 10


class Weather(BaseModel):
    city: str
    degrees: int


def test_answers_as_objects(claude: Anthropic, adapter: Adapter) -> None:
    message = claude.messages.parse(
        model="demo",
        max_tokens=64,
        messages=[{"role": "user", "content": '{"city": "Ulm", "degrees": 9}'}],
        output_format=Weather,
    )
    assert message.parsed_output == Weather(city="Ulm", degrees=9)
    assert '"degrees"' in adapter.spec.constraint.json_schema


def test_the_runner_of_tools(claude: Anthropic, adapter: Adapter) -> None:
    """The package calls a function, and sends its result in the next request, without a thread at the server."""

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Tells the weather.

        Args:
            city: The city.
        """
        return f"Rain in {city}."

    asked = script(call(0, '{"city":"Ulm"}', "call_1", "weather"), reason="TOOL_CALLS")
    runner = claude.beta.messages.tool_runner(
        model="demo", max_tokens=64, tools=[weather], messages=[{"role": "user", "content": asked}]
    )
    messages = [*runner]
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert [block.text for block in messages[-1].content if block.type == "text"] == [
        "Rain in Ulm."
    ]
    assert adapter.spec.messages[-1].tool_call_id == "call_1"
    assert adapter.spec.tools[0].name == "weather"
