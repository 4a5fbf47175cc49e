"""`qwenvl.Client` and `qwenvl.AsyncClient` against the service: the same words, the same results."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
import inspect
import pickle
from typing import Any

import grpc
import numpy as np
import pytest

from inference_service.backend.admission import Admission
import qwenvl
from qwenvl import (
    AbortedError,
    AsyncClient,
    Client,
    Error,
    assistant,
    image,
    predicate,
    system,
    user,
)
from qwenvl.answers import answer_of
from qwenvl.conversation import AsyncConversation, Conversation
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.testing import FakeServer
from tests.grpc_api.asking import until
from tests.grpc_api.conftest import OpenService, Service
from tests.qwenvl.both import CLIENTS, EitherClient, call, close, first, in_thread, pieces
from tests.rest_adapter.conftest import fake_service
from tests.rest_adapter.fake_service import Seen
from tests.support.images import draw


PNG = draw("red", "circle").png


@pytest.fixture(params=CLIENTS)
async def client(request: Any, service: Service) -> AsyncIterator[EitherClient]:
    opened = request.param(service.target())
    yield opened
    await call(opened.close)


def prompt_of(service: Service, index: int = -1) -> str:
    ids = service.engine.requests[index].prompt_token_ids
    return service.engine._tokenizer.decode(ids, skip_special_tokens=False)


async def test_chat_answers_and_counts_tokens(client: EitherClient, tmp_path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    answer = await call(client.chat, "what?", images=[path, PNG], temperature=0)
    assert (answer.text, answer.finish_reason, answer.model) == ("what?", "stop", "echo")
    assert len(answer.response.started.images) == 2
    assert answer.usage.completion_tokens == 6
    counted = await call(client.count_tokens, "what?", images=[path, PNG])
    assert counted.prompt_tokens == answer.usage.prompt_tokens
    assert (await call(client.chat, "abcdef", max_tokens=3)).finish_reason == "length"
    assert (await call(client.chat, [user("a"), user("b")], model="echo-too")).text == "b"
    assert [model.name for model in await call(client.models)] == ["echo", "echo-too"]
    assert (await call(client.model)).name == "echo"
    assert (await call(client.model, "echo-too")).canonical_name == "echo"


async def test_a_conversation_with_images_in_every_form(
    client: EitherClient, service: Service, tmp_path
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(PNG)
    shown = user("old", image(path), image(np.zeros((64, 64, 3), np.uint8), uuid="black"))
    messages = [system("Be kind."), shown, assistant("seen"), user("new")]
    answer = await call(client.chat, messages, images=str(path))
    assert answer.text == "new"
    assert [found.uuid for found in answer.response.started.images] == ["", "black", ""]
    prompt = prompt_of(service)
    assert prompt.index("Be kind.") < prompt.index("seen") < prompt.index("new")
    # The image beside the messages belongs to the last question.
    assert prompt.index("seen") < prompt.rindex("<|vision_start|>") < prompt.index("new")


async def test_options_reach_the_service(client: EitherClient, service: Service) -> None:
    answer = await call(
        client.chat,
        "abcdef",
        system="S",
        stop="d",
        n=2,
        logprobs=2,
        temperature=0,
        return_token_ids=True,
        return_prompt_text=True,
        request_id="mine",
        cache_salt="salt",
    )
    assert [choice.text for choice in answer.choices] == ["abc", "abc"]
    assert answer.response.choices[0].stop_detail.stop_string == "d"
    assert answer.request_id == "mine"
    assert "system\nS<" in answer.response.started.prompt_text
    assert len(answer.logprobs) == len(answer.token_ids) > 0
    assert len(answer.logprobs[0].top) == 2
    small = await call(client.chat, "x", images=PNG, max_pixels=8 * 32 * 32)
    assert small.response.started.images[0].tokens <= 8
    continued = [user("a"), assistant("b")]
    await call(client.chat, continued, continue_final_message=True, add_generation_prompt=False)
    assert prompt_of(service).endswith("assistant\nb")


async def test_text_completions(client: EitherClient) -> None:
    answer = await call(client.complete, "Once upon", temperature=0, max_tokens=4)
    assert (answer.text, answer.finish_reason) == ("Once", "length")
    assert (await call(client.complete, [65, 66], model="echo-too")).usage.prompt_tokens == 2
    shown = await call(client.complete, "<|image_pad|>?", images=[PNG])
    assert len(shown.response.started.images) == 1
    with pytest.raises(qwenvl.InvalidRequestError) as caught:
        await call(client.complete, "?", images=[PNG])
    assert caught.value.field == "spec.text"
    stream = client.stream_complete("Once upon", max_tokens=4, return_prompt_token_ids=True)
    assert "".join(await pieces(stream)) == "Once"
    assert isinstance(stream.answer.response, completion_pb.CreateCompletionResponse)
    assert len(stream.answer.response.started.prompt_token_ids) == 9


BOX = '{"bbox_2d": [250, 250, 750, 750], "label": "x"}'


async def test_the_answer_at_the_end_of_a_stream_is_the_complete_one(client: EitherClient) -> None:
    options: Any = {
        "n": 2,
        "logprobs": 1,
        "prompt_logprobs": 0,
        "return_token_ids": True,
        "grounding": True,
        "seed": 3,
        "request_id": "same",
    }
    whole = await call(client.chat, BOX, images=PNG, **options)
    stream = client.stream(BOX, images=PNG, **options)
    with pytest.raises(RuntimeError, match="to its end"):
        _ = stream.answer
    assert "".join(await pieces(stream)) == whole.text == stream.text == BOX
    streamed = stream.answer
    assert (streamed.finish_reason, len(streamed.groundings)) == ("stop", 1)
    for response in (whole.response, streamed.response):
        response.started.created = 0
        response.usage.cached_tokens = response.started.prompt_usage.cached_tokens = 0
    assert streamed.response == whole.response
    assert isinstance(streamed.response, chat_pb.CreateChatCompletionResponse)
    assert (await call(client.stream("x").read)).text == "x"


async def test_a_stream_and_leaving_it(client: EitherClient, service: Service) -> None:
    assert "".join(await pieces(client.stream("你好"))) == "你好"
    events = await pieces(client.events("x", grounding=True))
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "usage")
    stream = client.stream("x" * 500)
    assert await first(stream) == "x"
    await close(stream)
    await until(lambda: not service.engine.live)
    assert stream.text == "x"
    with pytest.raises(RuntimeError):
        _ = stream.answer
    assert await pieces(stream) == []


async def test_a_conversation_remembers(client: EitherClient, service: Service) -> None:
    talk = client.conversation(system="S", temperature=0)
    assert (await call(talk.ask, image(PNG), "one")).text == "one"
    with pytest.raises(qwenvl.InvalidRequestError):
        await call(talk.ask, "bad", temperature=9)
    abandoned = talk.stream("x" * 500)
    await first(abandoned)
    await close(abandoned)
    stream = talk.stream("two", max_tokens=2)
    assert "".join(await pieces(stream)) == "tw"
    answer = await call(talk.ask, "three")
    assert answer.usage.prompt_tokens > 0
    prompt = prompt_of(service)
    for text in ("S<", "one<", "one<", "two<", "tw<", "three<"):
        prompt = prompt[prompt.index(text) + 1 :]
    assert "bad" not in prompt_of(service)
    assert "xx" not in prompt_of(service)
    assert [len(message.parts) for message in talk.messages] == [1, 2, 1, 1, 1, 1, 1]


async def test_errors_say_what_is_wrong_and_where(client: EitherClient) -> None:
    with pytest.raises(qwenvl.InvalidRequestError) as caught:
        await call(client.chat, "x", temperature=9, request_id="r9")
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert (error.field, error.request_id) == ("spec.sampling.temperature", "r9")
    with pytest.raises(qwenvl.ImageError) as failed:
        await call(client.chat, "x", images=[b"no image"])
    assert failed.value.reason == "INVALID_IMAGE"
    with pytest.raises(qwenvl.ModelNotFoundError) as unknown:
        await pieces(client.stream("x", model="nobody"))
    assert unknown.value.metadata == {"model": "nobody"}
    with pytest.raises(qwenvl.RequestTooLargeError):
        await call(client.chat, "x" * (33 * 2**20))


async def test_a_full_service_says_when_to_come_back(open_service: OpenService) -> None:
    service = await open_service(max_queue=1, max_num_seqs=1)
    service.engine.hold_at = 1
    async with AsyncClient(service.target()) as client:
        waiting = [asyncio.create_task(client.chat("x")) for _ in range(4)]
        done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_EXCEPTION)
        error = done.pop().exception()
        assert isinstance(error, qwenvl.RateLimitError)
        assert error.retry_after is not None
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


async def test_a_wrong_option_is_refused(client: EitherClient) -> None:
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        await call(client.chat, "x", temprature=1)


async def test_mypy_refuses_a_wrong_option() -> None:
    """`make lint` fails if mypy does not: an ignore that ignores nothing is an error."""
    with Client("127.0.0.1:1") as client:
        for ask in (client.chat, client.count_tokens):
            with pytest.raises(TypeError):
                ask("x", temprature=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            client.chat("x", temperature="hot")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            client.complete("x", system="s")  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            client.conversation().ask("x", temprature=1)  # type: ignore[call-arg]
    async with AsyncClient("127.0.0.1:1") as other:
        with pytest.raises(TypeError):
            await other.chat("x", temprature=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            other.stream("x", temprature=1)  # type: ignore[call-arg]


async def test_unavailable_is_tried_again(open_service: OpenService) -> None:
    service = await open_service(ready=False)
    asked = asyncio.Event()
    admit, loop = Admission.admit, asyncio.get_running_loop()

    def noticed(*arguments: Any) -> object:
        loop.call_soon_threadsafe(asked.set)
        return admit(*arguments)

    with pytest.MonkeyPatch.context() as patch, Client(service.target()) as client:
        patch.setattr(Admission, "admit", noticed)
        answer = asyncio.ensure_future(asyncio.to_thread(client.chat, "x"))
        await asked.wait()
        await asyncio.sleep(0)
        await service.engine.start()
        assert (await answer).text == "x"


@pytest.mark.parametrize("kind", CLIENTS)
async def test_the_key_is_sent_and_calls_are_repeated(kind: Any) -> None:
    seen = Seen()
    question = "unreachable 2"
    async with fake_service(seen) as (port, _):
        client = kind(f"127.0.0.1:{port}", api_key="k")
        assert "".join(await pieces(client.stream(question, model="demo"))) == question
        assert seen.calls == 3
        seen.calls = 0
        assert (await call(client.chat, question, model="demo")).text == question
        assert seen.calls == 3
        await call(client.close)
    assert seen.metadata[-1]["authorization"] == "Bearer k"


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_stream_that_fails_keeps_what_it_has(kind: Any) -> None:
    async with fake_service(Seen()) as (port, _):
        client = kind(f"127.0.0.1:{port}")
        stream = client.stream("fail-after 3", model="demo")
        with pytest.raises(qwenvl.UnavailableError) as caught:
            await pieces(stream)
        assert (caught.value.reason, caught.value.retry_after) == ("ENGINE_UNAVAILABLE", 2.5)
        assert stream.text == "fai"
        with pytest.raises(RuntimeError):
            _ = stream.answer
        await call(client.close)


def test_an_async_client_may_be_older_than_its_event_loop() -> None:
    with FakeServer() as server:
        client = AsyncClient(server.target)

        async def ask() -> str:
            async with client:
                return (await client.chat("x")).text

        assert asyncio.run(ask()) == "x"


def test_a_finish_reason_of_a_newer_service() -> None:
    response = chat_pb.CreateChatCompletionResponse()
    response.choices.add(text="x", finish_reason=99)
    assert answer_of(response).finish_reason == "unspecified"


async def test_a_cancelled_task_aborts_the_answer(service: Service) -> None:
    service.engine.hold_at = 1
    async with AsyncClient(service.target()) as client:
        task = asyncio.create_task(client.chat("x"))
        await until(lambda: bool(service.engine.live))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not service.engine.live)


async def test_requests_can_be_aborted_by_their_id(client: EitherClient, service: Service) -> None:
    service.engine.hold_at = 1
    task = asyncio.ensure_future(call(client.chat, "x", request_id="long"))
    await until(lambda: bool(service.engine.live))
    assert await call(client.abort, "long", "unknown") == ["long"]
    with pytest.raises(AbortedError) as caught:
        await task
    again = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, again):
        assert (error.reason, error.request_id) == ("ABORTED", "long")
        assert error.answer is not None
        assert error.answer.finish_reason == "aborted"
        assert error.answer == caught.value.answer


async def test_an_aborted_stream_ends_with_an_error_behind_its_pieces(
    client: EitherClient, service: Service
) -> None:
    service.engine.hold_at = 3
    stream = client.stream("abcdef", request_id="long")
    reading = asyncio.create_task(pieces(stream))
    await until(lambda: stream.text == "abc")
    assert await call(client.abort, ["long"]) == ["long"]
    with pytest.raises(AbortedError) as caught:
        await reading
    assert caught.value.answer is not None
    assert caught.value.answer.text == stream.text == "abc"
    with pytest.raises(RuntimeError, match="to its end"):
        _ = stream.answer
    talk = client.conversation()
    service.engine.hold_at = 0
    asking = asyncio.create_task(call(talk.ask, "x", request_id="talk"))
    await until(lambda: bool(service.engine.live))
    await call(client.abort, "talk")
    with pytest.raises(AbortedError):
        await asking
    assert not talk.messages, "what was aborted is no part of the history"


async def test_many_at_once(client: EitherClient) -> None:
    questions = [f"question {number}" for number in range(8)]
    answers = await asyncio.gather(*(call(client.chat, question) for question in questions))
    assert [answer.text for answer in answers] == questions


@pytest.mark.parametrize(
    ("one", "other"), [(Client, AsyncClient), (Conversation, AsyncConversation)]
)
def test_both_clients_have_the_same_words(one: type, other: type) -> None:
    def public(kind: type) -> dict[str, list[tuple[str, Any, str]]]:
        return {
            name: [
                (parameter.name, parameter.default, parameter.annotation)
                for parameter in inspect.signature(member).parameters.values()
            ]
            for name, member in vars(kind).items()
            if not name.startswith("_")
        }

    assert public(one) == public(other)
    assert list(inspect.signature(one).parameters) == list(inspect.signature(other).parameters)


async def test_what_the_service_says_of_itself(client: EitherClient, service: Service) -> None:
    info = await call(client.server_info)
    assert (info.model, info.engine_state) == ("echo", admin_pb.ENGINE_STATE_READY)
    assert info.max_num_seqs > 0
    service.engine.hold_at = 1
    task = asyncio.ensure_future(call(client.chat, "x", request_id="long"))
    await until(lambda: bool(service.engine.live))
    assert (await call(client.load)).running_requests == 1
    await call(client.abort, "long")
    with pytest.raises(AbortedError):
        await task


class Seeing(grpc.GenericRpcHandler):
    """Serves nothing, and notes what is called."""

    def __init__(self) -> None:
        self.methods: set[str] = set()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
        self.methods.add(handler_call_details.method)


CALLS: tuple[tuple[Any, ...], ...] = (
    *(("chat", "x"), ("complete", "x"), ("count_tokens", "x"), ("render", "x")),
    *(("render_complete", "x"), ("tokenize", "x"), ("detokenize", [1]), ("models",)),
    *(("model",), ("abort", "x"), ("server_info",), ("load",), ("decide", "x", [predicate("y")])),
)


@pytest.mark.parametrize("kind", CLIENTS)
async def test_every_method_of_the_service_is_one_of_the_clients(kind: Any) -> None:
    """But for one of operators, and one with a deprecated name."""
    files = (chat_pb, completion_pb, decision_pb, model_pb, tokenize_pb, admin_pb)
    served = {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    of_operators = {
        f"/qwenvl.inference.v1.AdminService/{name}" for name in ("Drain", "AbortRequest")
    }
    seeing = Seeing()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[seeing])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client = kind(f"127.0.0.1:{port}")
    for name, *arguments in CALLS:
        with pytest.raises(Error):
            await call(getattr(client, name), *arguments)
    for stream in (client.stream("x"), client.stream_complete("x")):
        with pytest.raises(Error):
            await pieces(stream)
    await call(client.close)
    server.stop(None).wait()
    assert of_operators < served
    assert seeing.methods == served - of_operators


def test_an_async_client_outlives_its_event_loop() -> None:
    """Programs call `asyncio.run` for every question."""
    with FakeServer("Yes.") as server:
        client = AsyncClient(server.target)
        assert [asyncio.run(client.chat("?")).text for _ in range(3)] == ["Yes."] * 3


async def test_an_async_client_in_two_loops_at_once_says_so() -> None:
    with FakeServer("Yes.") as server:
        async with AsyncClient(server.target) as client:
            await client.chat("?")
            with pytest.raises(RuntimeError, match="in use in another event loop"):
                await in_thread(lambda: asyncio.run(client.models()))


def test_a_long_answer_costs_what_its_length_costs() -> None:
    """500,000 pieces: minutes, if each copied the text before it."""
    with FakeServer("word" * 500_000) as server, Client(server.target) as client:
        assert len(client.chat("?", timeout_s=120).text) == 2_000_000
