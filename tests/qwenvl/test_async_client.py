"""`qwenvl.AsyncClient` against the service."""

from __future__ import annotations

import asyncio
import inspect

import grpc
import pytest

from qwenvl import AsyncClient, Client, Error
from tests.grpc_api.asking import until, user
from tests.grpc_api.conftest import Service
from tests.rest_adapter.conftest import fake_service
from tests.rest_adapter.fake_service import Seen
from tests.support.images import draw


@pytest.fixture
async def client(service: Service):
    async with AsyncClient(service.target()) as client:
        yield client


async def test_chat_answers_and_counts_tokens(client: AsyncClient, tmp_path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(draw("red", "circle").png)
    answer = await client.chat("what?", images=[path, path.read_bytes()], temperature=0)
    assert (answer.text, answer.finish_reason) == ("what?", "stop")
    assert len(answer.response.started.images) == 2
    counted = await client.count_tokens("what?", images=[path, path.read_bytes()])
    assert counted.prompt_tokens == answer.usage.prompt_tokens
    assert (await client.chat("abcdef", max_tokens=3)).finish_reason == "length"
    assert (await client.chat([user("a"), user("b")], model="echo-too")).text == "b"
    assert [model.name for model in await client.models()] == ["echo", "echo-too"]


async def test_many_at_once(client: AsyncClient) -> None:
    questions = [f"question {number}" for number in range(8)]
    answers = await asyncio.gather(*(client.chat(question) for question in questions))
    assert [answer.text for answer in answers] == questions


async def test_text_completion(client: AsyncClient) -> None:
    answer = await client.complete("Once upon", temperature=0, max_tokens=4)
    assert (answer.text, answer.finish_reason) == ("Once", "length")
    assert (await client.complete([65, 66], model="echo-too")).usage.prompt_tokens == 2
    with pytest.raises(Error) as caught:
        await client.complete("?", images=[draw("red", "circle").png])
    assert caught.value.field == "spec.text"


async def test_stream_and_leaving_it(client: AsyncClient, service: Service) -> None:
    assert "".join([piece async for piece in client.stream("你好")]) == "你好"
    kinds = [event.WhichOneof("event") async for event in client.events("x", grounding=True)]
    assert (kinds[0], kinds[-1]) == ("started", "usage")
    pieces = client.stream("x" * 500)
    assert await anext(pieces) == "x"
    await pieces.aclose()
    await until(lambda: not service.engine.live)


async def test_cancelled_tasks_and_deadlines_end_the_work() -> None:
    seen = Seen()
    async with fake_service(seen) as (port, _), AsyncClient(f"127.0.0.1:{port}") as client:
        task = asyncio.create_task(client.chat("hang"))
        await until(lambda: seen.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: seen.running == 0)
        with pytest.raises(Error) as caught:
            await client.chat("hang", timeout_s=0.3)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(Error) as caught:
            [piece async for piece in client.stream("hang", timeout_s=0.3)]
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: seen.running == 0)


async def test_errors_carry_code_reason_and_field(client: AsyncClient) -> None:
    with pytest.raises(Error) as caught:
        await client.chat("x", temperature=9)
    error = caught.value
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert error.field == "spec.sampling.temperature"
    with pytest.raises(Error) as caught:
        [piece async for piece in client.stream("x", model="nobody")]
    assert caught.value.reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize("stream", [True, False])
async def test_key_and_retries(stream: bool) -> None:
    seen = Seen()
    async with (
        fake_service(seen) as (port, _),
        AsyncClient(f"127.0.0.1:{port}", api_key="k") as client,
    ):
        question = "unreachable 2"
        if stream:
            text = "".join([piece async for piece in client.stream(question)])
        else:
            text = (await client.chat(question)).text
    assert text == question
    assert seen.calls == 3
    assert seen.metadata[-1]["authorization"] == "Bearer k"


def test_has_the_methods_of_the_client() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in vars(kind).items()
            if not name.startswith("_")
        }

    assert public(AsyncClient) == public(Client)
    assert list(inspect.signature(AsyncClient).parameters) == list(
        inspect.signature(Client).parameters
    )
