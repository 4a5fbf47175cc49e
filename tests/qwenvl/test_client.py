"""`qwenvl.Client` against the service."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
import subprocess
import sys
from typing import Any

import grpc
import pytest

from inference_service.backend.admission import Admission
from qwenvl import Client, Error
from tests.grpc_api.asking import until, user
from tests.grpc_api.conftest import Service
from tests.support.images import draw


@pytest.fixture
async def client(service: Service):
    with Client(service.target()) as client:
        yield client


async def test_chat_answers_and_counts_tokens(client: Client, tmp_path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(draw("red", "circle").png)

    def ask() -> None:
        answer = client.chat("what?", images=[path, path.read_bytes()], temperature=0)
        assert (answer.text, answer.finish_reason) == ("what?", "stop")
        assert len(answer.response.started.images) == 2
        assert answer.usage.completion_tokens == 6
        counted = client.count_tokens("what?", images=[path, path.read_bytes()])
        assert counted.prompt_tokens == answer.usage.prompt_tokens
        assert client.chat("abcdef", max_tokens=3).finish_reason == "length"
        assert client.chat([user("a"), user("b")], model="echo-too").text == "b"
        assert [model.name for model in client.models()] == ["echo", "echo-too"]

    await asyncio.to_thread(ask)


async def test_text_completions(client: Client) -> None:
    def ask() -> None:
        answer = client.complete("Once upon", temperature=0, max_tokens=4)
        assert (answer.text, answer.finish_reason) == ("Once", "length")
        assert client.complete([65, 66], model="echo-too").usage.prompt_tokens == 2
        image = draw("red", "circle").png
        shown = client.complete("<|image_pad|>?", images=[image])
        assert len(shown.response.started.images) == 1
        with pytest.raises(Error) as caught:
            client.complete("?", images=[image])
        assert caught.value.field == "spec.text"

    await asyncio.to_thread(ask)


async def test_stream_and_leaving_it(client: Client, service: Service) -> None:
    assert "".join(await asyncio.to_thread(lambda: list(client.stream("你好")))) == "你好"

    def leave() -> None:
        pieces = client.stream("x" * 500)
        assert next(pieces) == "x"
        assert isinstance(pieces, Generator)
        pieces.close()

    await asyncio.to_thread(leave)
    await until(lambda: not service.engine.live)


async def test_errors_carry_code_reason_and_field(client: Client) -> None:
    def fail(**options: Any) -> Error:
        with pytest.raises(Error) as caught:
            client.chat("x", **options)
        return caught.value

    error = await asyncio.to_thread(fail, temperature=9)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert error.field == "spec.sampling.temperature"
    error = await asyncio.to_thread(fail, images=[b"no image"])
    assert error.reason == "INVALID_IMAGE"
    error = await asyncio.to_thread(fail, model="nobody")
    assert error.reason == "MODEL_NOT_FOUND"

    def fail_streaming() -> Error:
        with pytest.raises(Error) as caught:
            list(client.stream("x", model="nobody"))
        return caught.value

    assert (await asyncio.to_thread(fail_streaming)).reason == "MODEL_NOT_FOUND"


async def test_unavailable_is_tried_again(open_service) -> None:
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


def test_needs_grpcio_and_protobuf_only() -> None:
    code = (
        "import sys, qwenvl\n"
        "heavy = {'pydantic', 'numpy', 'torch', 'httpx', 'inference_service', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
