"""Programs built with the contract of an earlier version call this one.

Their messages are made of the published descriptors alone, so that nothing of the current contract helps them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
import hashlib
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
import grpc
import grpc.aio
import pytest

from tests.grpc_api.conftest import Service, channel_to
from tests.support.images import draw


ROOT = Path(__file__).parents[2]
PACKAGE = "qwenvl.inference.v1"
CONTRACTS = [Path(__file__).parent / "published" / "0.1.0.binpb", ROOT / "protos/baseline.binpb"]


class Program:
    """A program with the stubs of one published contract.

    Args:
        contract: The descriptors.
        channels: The channel to the main address, and that to the admin address.
    """

    def __init__(self, contract: Path, channels: tuple[grpc.aio.Channel, grpc.aio.Channel]) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        self._channels = channels
        files = descriptor_pb2.FileDescriptorSet.FromString(contract.read_bytes()).file
        for file in files:
            self._pool.Add(file)
        self.methods = {
            f"{service.name}/{method.name}"
            for file in files
            for service in file.service
            for method in service.method
        }
        self.called: set[str] = set()

    async def call(self, name: str, /, *, admin: bool = False, **request: Any) -> list[Any]:
        """The responses of a method."""
        self.called.add(name)
        service, _, method = name.partition("/")
        described = self._pool.FindServiceByName(f"{PACKAGE}.{service}").FindMethodByName(method)
        many = described.server_streaming
        channel = self._channels[admin]
        stub: Any = (channel.unary_stream if many else channel.unary_unary)(
            f"/{PACKAGE}.{name}",
            request_serializer=message_factory.GetMessageClass(
                described.input_type
            ).SerializeToString,
            response_deserializer=message_factory.GetMessageClass(described.output_type).FromString,
        )
        filled = message_factory.GetMessageClass(described.input_type)(**request)
        call = stub(filled, timeout=20)
        return [response async for response in call] if many else [await call]


@pytest.fixture(params=CONTRACTS, ids=["0.1.0", "baseline"])
async def program(request: pytest.FixtureRequest, service: Service) -> AsyncIterator[Program]:
    async with channel_to(service.target("admin")) as admin:
        yield Program(request.param, (service.channel, admin))


def spec() -> dict[str, Any]:
    parts = [{"image": {"data": draw("red", "circle").png}}, {"text": "hello"}]
    return {
        "model": "echo",
        "messages": [{"role": "ROLE_USER", "parts": parts}],
        "sampling": {"temperature": 0, "max_tokens": 50},
    }


async def test_every_method_of_a_published_contract(program: Program) -> None:
    [whole] = await program.call("ChatService/CreateChatCompletion", spec=spec())
    assert whole.choices[0].text.endswith("hello")
    events = await program.call("ChatService/StreamChatCompletion", spec=spec())
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-2:]) == ("started", ["finished", "usage"])
    deltas = "".join(event.delta.text for event in events if event.WhichOneof("event") == "delta")
    assert deltas == whole.choices[0].text
    [counted] = await program.call("ChatService/CountTokens", spec=spec())
    assert counted.usage.prompt_tokens == whole.usage.prompt_tokens
    if "CompletionService/CreateCompletion" in program.methods:
        raw = {"model": "echo", "text": "hello", "sampling": {"temperature": 0, "max_tokens": 5}}
        [text] = await program.call("CompletionService/CreateCompletion", spec=raw)
        events = await program.call("CompletionService/StreamCompletion", spec=raw)
        assert text.choices[0].text
        assert events[-1].WhichOneof("event") == "usage"
    [listed] = await program.call("ModelService/ListModels")
    [model] = await program.call("ModelService/GetModel", name="echo")
    assert listed.models[0].name == model.model.name == "echo"
    [info] = await program.call("AdminService/GetServerInfo")
    assert info.model == "echo"
    [load] = await program.call("AdminService/GetLoad")
    assert load.load.kv_pages_total > 0
    [aborted] = await program.call("AdminService/AbortRequest", request_ids=["no-such"])
    assert list(aborted.unknown) == ["no-such"]
    [drained] = await program.call("AdminService/Drain", admin=True)
    assert drained.requests_in_flight == 0
    assert program.called == program.methods


def test_the_oldest_contract_is_the_published_one() -> None:
    digest = hashlib.sha256(CONTRACTS[0].read_bytes()).hexdigest()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    section = changelog.partition("## [0.1.0]")[2]
    assert f"Contract: `sha256:{digest}`" in section
