"""`qwenvl.testing.FakeServer` does what the real service does, and what a test tells it to."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from inference_service.sampling import RANGES as SERVICE_RANGES
import qwenvl
from qwenvl import AsyncClient, Client, Error, assistant, image, system, tool, tool_result, user
from qwenvl.errors import BY_REASON
from qwenvl.fake.checks import RANGES
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.testing import FakeServer, Reply
from tests.grpc_api.conftest import OpenService
from tests.qwenvl.both import CLIENTS, call, in_thread
from tests.support.images import draw


PNG = draw("red", "circle").png
BOX = '{"bbox_2d": [250, 250, 750, 750], "label": "x"}'
NOW = tool("now", "The time.")
GROUNDING = usage_pb.Grounding(
    label="x", box=usage_pb.BoundingBox(x_min=64, y_min=64, x_max=192, y_max=192)
)

# What a program may ask, and how: the real service and the fake one answer the same.
REQUESTS: dict[str, Any] = {
    "text": ("chat", "hello", {}),
    "image": ("chat", "hello", {"images": PNG}),
    "conversation": ("chat", [system("s"), user("a", image(PNG)), assistant("b"), user("c")], {}),
    "cut by length": ("chat", "hello", {"max_tokens": 3}),
    "as long as the limit": ("chat", "hello", {"max_tokens": 5}),
    "stopped": ("chat", "hello", {"stop": ["l", "o"]}),
    "stopped with the string": ("chat", "hello", {"stop": "ll", "include_stop_string": True}),
    "stopped by nothing": ("chat", "hello", {"stop": "z"}),
    "several": ("chat", "hello", {"n": 2}),
    "log probabilities": ("chat", "hello", {"logprobs": 1}),
    "token ids": ("chat", "hello", {"return_token_ids": True}),
    "boxes": ("chat", BOX, {"images": PNG, "grounding": True}),
    "other name": ("chat", "hello", {"model": "echo-too"}),
    "own id": ("chat", "hello", {"request_id": "mine"}),
    "raw": ("complete", "Once", {}),
    "raw ids": ("complete", [65, 66, 67], {}),
    "raw cut": ("complete", "Once", {"max_tokens": 2}),
    "raw several": ("complete", "Once", {"n": 2}),
    "unknown name": ("chat", "hello", {"model": "nobody"}),
    "too hot": ("chat", "hello", {"temperature": 3}),
    "no number": ("chat", "hello", {"top_p": math.nan}),
    "too probable": ("chat", "hello", {"top_p": 1.5}),
    "too few likely": ("chat", "hello", {"top_k": -2}),
    "no repetition": ("chat", "hello", {"repetition_penalty": math.nan}),
    "fewer than no tokens": ("complete", "hello", {"min_tokens": -1}),
    "min_p": ("chat", "hello", {"min_p": 2}),
    "presence": ("chat", "hello", {"presence_penalty": -3}),
    "frequency": ("complete", "hello", {"frequency_penalty": 3}),
    "own id of what fails": ("chat", "hello", {"temperature": 3, "request_id": "mine"}),
    "no tokens": ("chat", "hello", {"max_tokens": 0}),
    "no answers": ("chat", "hello", {"n": 0}),
    "too many answers": ("complete", "hello", {"n": 5}),
    "no messages": ("chat", [], {}),
    "no role": ("chat", [message_pb.Message(parts=[message_pb.Part(text="x")])], {}),
    "no kind": ("chat", [user(message_pb.Part())], {}),
    "unknown tool": ("chat", "hello", {"tools": [NOW], "tool_choice": "later"}),
    "unknown tool allowed": ("chat", "hello", {"tools": [NOW], "allowed_tools": ["later"]}),
    "required without tools": ("chat", "hello", {"tool_choice": "required"}),
    "tools that are not called": ("chat", "hello", {"tools": [NOW], "tool_choice": "auto"}),
    "no prompt": ("complete", "", {}),
    "no prompt ids": ("complete", [], {}),
}


def test_the_ranges_are_those_of_the_service() -> None:
    service = {name: (limits.minimum, limits.maximum) for name, limits in SERVICE_RANGES.items()}
    assert {"seed": service["seed"], **RANGES} == service


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", RANGES)
def test_what_is_no_value_is_refused(name: str, value: float) -> None:
    options: Any = {name: value}
    with FakeServer("x") as server, Client(server.target) as client:
        with pytest.raises((Error, ValueError, TypeError)) as caught:
            client.chat("x", **options)
        assert name in str(caught.value)


def outcome(client: Client, method: str, question: Any, options: dict[str, Any]) -> Any:
    """What a caller sees of a request, in both of its forms, without what depends on a tokenizer."""
    stream = client.stream if method == "chat" else client.stream_complete
    seen: list[Any] = []
    for ask in (getattr(client, method), lambda *a, **k: stream(*a, **k).read()):
        try:
            answer = ask(question, **options)
        except Error as error:
            named = error.request_id == options.get("request_id", error.request_id)
            seen.append((type(error), error.code, error.reason, error.field, named))
        else:
            choices = [
                (
                    # The engine behind the real service repeats the question in its later choices.
                    choice.text[: len(answer.text)],
                    choice.finish_reason,
                    choice.stop_detail.WhichOneof("trigger") == "stop_string",
                    bool(choice.logprobs),
                    bool(choice.token_ids),
                    list(choice.groundings),
                )
                for choice in answer.choices
            ]
            usage = answer.usage
            added = usage.prompt_tokens + usage.completion_tokens
            kinds = [detail.modality for detail in usage.prompt_details]
            seen.append((answer.model, choices, added == usage.total_tokens, kinds))
            seen.append(answer.request_id == options.get("request_id", answer.request_id))
    return seen


async def test_it_answers_as_the_real_service(open_service: OpenService) -> None:
    service = await open_service()
    names = ["echo", "echo-too"]

    def answer(spec: Any) -> Reply:
        text = spec.messages[-1].parts[-1].text if hasattr(spec, "messages") else spec.text
        ids = () if text else spec.token_ids.ids
        return Reply(text or service.engine._tokenizer.decode(list(ids)), [GROUNDING])

    def compare() -> None:
        with (
            FakeServer(answer, models=names) as fake,
            Client(fake.target) as told,
            Client(service.target()) as asked,
        ):
            for name, (method, question, options) in REQUESTS.items():
                wanted = outcome(asked, method, question, options)
                assert outcome(told, method, question, options) == wanted, name
            assert [m.name for m in told.models()] == [m.name for m in asked.models()]
            assert told.model().name == asked.model().name
            assert told.abort("x") == asked.abort("x") == []
            told.wait_until_ready(10)

    await in_thread(compare)


async def test_events_come_in_the_same_order(open_service: OpenService) -> None:
    service = await open_service()

    def kinds(target: str) -> list[str | None]:
        with Client(target) as client:
            found = [event.WhichOneof("event") for event in client.events("hello", n=2)]
        return [*list(dict.fromkeys(found)), str(found.count("finished"))]

    with FakeServer() as fake:
        assert await in_thread(kinds, fake.target) == await in_thread(kinds, service.target())


def test_it_answers_what_it_is_told_and_keeps_what_it_received() -> None:
    with FakeServer("A cat.") as server, Client(server.target) as client:
        assert client.chat("What is it?", images=PNG, system="s").text == "A cat."
        assert "".join(client.stream("And this?")) == "A cat."
        assert client.complete("Once").text == "A cat."
        first, second = server.chat_requests
        [third] = server.completion_requests
        assert first.messages[1].parts[0].image.data == PNG
        assert second.messages[0].parts[0].text == "And this?"
        assert third.text == "Once"


@pytest.mark.parametrize("reason", sorted(BY_REASON))
async def test_it_fails_as_it_is_told(reason: str) -> None:
    with FakeServer() as server:
        server.fail(reason, "So it is.", field="spec.n", retry_after=1.5, times=8)
        async with AsyncClient(server.target) as client:
            for ask in (client.chat("x"), client.stream("x").read()):
                with pytest.raises(Error) as caught:
                    await ask
                error = caught.value
                assert error.code is BY_REASON[reason].grpc_code
                assert (error.reason, error.message) == (reason, "So it is.")
                assert (error.field, error.retry_after) == ("spec.n", 1.5)
    with pytest.raises(ValueError, match="NOPE"):
        server.fail("NOPE")


def test_it_has_a_key_a_state_and_a_delay() -> None:
    with FakeServer(api_key="k") as server:
        with Client(server.target, api_key="wrong") as client:
            for refused in (client.models, lambda: client.chat("x"), lambda: client.abort("x")):
                with pytest.raises(qwenvl.AuthenticationError):
                    refused()
        with Client(server.target, api_key="k") as client:
            assert client.chat("x").text == "x"
            server.is_ready = False
            with pytest.raises(qwenvl.DeadlineExceededError):
                client.wait_until_ready(0.3)
            server.delay(60)
            with pytest.raises(qwenvl.DeadlineExceededError):
                client.chat("x", timeout_s=0.3)
            begin = time.monotonic()
    assert time.monotonic() - begin < 20  # the block does not wait for the delay


def test_a_mistake_of_the_test_is_told_at_once() -> None:
    for answer in (5, b"yes", ["yes"]):
        with pytest.raises(TypeError, match=r"^answer is a text, a Reply or None, not "):
            FakeServer(answer)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ValueError, match="models is empty"):
        FakeServer(models=())
    with FakeServer(lambda _: 5, models="one") as server, Client(server.target) as client:  # type: ignore[arg-type,return-value]
        assert [model.name for model in client.models()] == ["one"]
        with pytest.raises(
            Error, match=r"what the answer function returned is a text, a Reply or None, not int"
        ):
            client.chat("?")
        for seconds in (-1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=r"^seconds is "):
                server.delay(seconds)
            with pytest.raises(ValueError, match="neither is below 0"):
                server.fail("INTERNAL", retry_after=seconds)


async def test_calls_reasoning_and_results() -> None:
    call = message_pb.ToolCall(id="call_1", name="now", arguments_json='{"zone": "UTC"}')
    replies = [
        Reply("I look.", reasoning="Hm.", tool_calls=[call]),
        Reply(tool_calls=[call]),
        Reply("Noon."),
    ] * 2
    with FakeServer(lambda _: replies.pop(0)) as server:
        with Client(server.target) as client:
            dialogue = client.conversation(tools=[NOW])
            first = dialogue.ask("What time is it?")
            assert (first.text, first.reasoning, first.finish_reason) == (
                "I look.",
                "Hm.",
                "tool_calls",
            )
            assert list(first.tool_calls) == [call]
            assert first.usage.reasoning_tokens == 3
            second = dialogue.send(tool_result(first.tool_calls[0], "12:00", image(PNG)))
            assert (second.text, list(second.tool_calls)) == ("", [call])
            assert dialogue.send(tool_result("call_1", "12:01")).text == "Noon."
            roles = [message.role for message in dialogue.messages]
            assert roles == [2, 3, 4, 3, 4, 3]
            answer, result = dialogue.messages[1:3]
            assert (answer.reasoning, list(answer.tool_calls)) == ("Hm.", [call])
            assert (result.tool_call_id, len(result.parts)) == ("call_1", 2)
            assert not dialogue.messages[3].parts
        async with AsyncClient(server.target) as client:
            other = client.conversation(tools=[NOW])
            stream = other.stream("What time is it?")
            assert [piece async for piece in stream] == ["I lo", "ok."]
            assert list(stream.answer.tool_calls) == [call]
            await other.send(tool_result(call, "12:00"))
            assert (await other.send(tool_result(call, "12:01"))).text == "Noon."
    assert all(spec.tools[0].name == "now" for spec in server.chat_requests)


def test_a_text_that_is_cut_has_no_calls() -> None:
    call = message_pb.ToolCall(id="call_1", name="now")
    with FakeServer(Reply("I look.", tool_calls=[call])) as server, Client(server.target) as client:
        assert not client.chat("x", max_tokens=2).tool_calls


@pytest.mark.parametrize("kind", CLIENTS)
async def test_it_says_that_it_is_ready_and_idle(kind: Any) -> None:
    with FakeServer(models="fake") as server:
        client = kind(server.target)
        info = await call(client.server_info)
        assert (info.model, info.engine_state) == ("fake", admin_pb.ENGINE_STATE_READY)
        assert info.max_message_bytes > 0
        assert (await call(client.load)).running_requests == 0
        await call(client.close)
