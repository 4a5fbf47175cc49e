"""Reflection in both versions: services, the contract, and the messages that carry the details of errors."""

from __future__ import annotations

import base64
import json
from pathlib import Path
import subprocess
import sys
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.json_format import MessageToDict
import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection_pb2
import pytest

from tests.grpc_api.conftest import OpenService, Service
from tests.qwenvl.both import in_thread


VERSIONS = ("v1", "v1alpha")
BUF = Path(sys.executable).with_name("buf")


async def ask(
    channel: grpc.aio.Channel, version: str, **fields: Any
) -> reflection_pb2.ServerReflectionResponse:
    """One question; the messages of both versions are the same."""
    method: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = method(iter([reflection_pb2.ServerReflectionRequest(**fields)]), timeout=20)
    async for response in call:
        return response
    raise AssertionError("no response")


@pytest.mark.parametrize("version", VERSIONS)
async def test_services(service: Service, version: str) -> None:
    response = await ask(service.channel, version, list_services="")
    names = {item.name for item in response.list_services_response.service}
    own = {
        f"qwenvl.inference.v1.{name}Service"
        for name in ("Chat", "Completion", "Decision", "Model", "Tokenize", "Admin")
    }
    reflection = {f"grpc.reflection.{each}.ServerReflection" for each in VERSIONS}
    assert names == own | reflection | {"grpc.health.v1.Health"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "symbol",
    [
        "qwenvl.inference.v1.ChatService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        *(
            f"google.rpc.{name}"
            for name in (
                "Status",
                "ErrorInfo",
                "BadRequest",
                "RetryInfo",
                "ResourceInfo",
                "RequestInfo",
            )
        ),
    ],
)
async def test_symbols_with_everything_they_need(
    service: Service, version: str, symbol: str
) -> None:
    response = await ask(service.channel, version, file_containing_symbol=symbol)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in response.file_descriptor_response.file_descriptor_proto
    ]
    package, _, name = symbol.rpartition(".")
    holders = [file for file in files if file.package == package]
    names = {item.name for file in holders for item in file.message_type}
    assert name in names | {item.name for file in holders for item in file.service}
    assert {path for file in files for path in file.dependency} <= {file.name for file in files}


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_unknown_symbol(service: Service, version: str) -> None:
    response = await ask(service.channel, version, file_containing_symbol="no.Such")
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_several_services_in_one_process(open_service: OpenService) -> None:
    for _ in range(2):
        service = await open_service()
        assert (await ask(service.channel, "v1", list_services="")).HasField(
            "list_services_response"
        )


async def reflected(channel: grpc.aio.Channel, version: str, name: str) -> Any:
    """The class of a message, from what reflection says alone."""
    response = await ask(channel, version, file_containing_symbol=name)
    pool = descriptor_pool.DescriptorPool()
    files = response.file_descriptor_response.file_descriptor_proto
    for data in reversed(files):  # what a file needs comes after it
        pool.AddSerializedFile(data)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def buf_curl(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BUF), "curl", "--http2-prior-knowledge", "--protocol", "grpc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_tool_calls_the_service_and_reads_the_details_of_errors(
    service: Service, version: str
) -> None:
    reflect = ("--reflect-protocol", f"grpc-{version}")
    method = f"http://{service.target()}/qwenvl.inference.v1.ChatService/CreateChatCompletion"
    asked = {"messages": [{"role": "ROLE_USER", "parts": [{"text": "hello"}]}]}
    arguments = (*reflect, "-d", json.dumps({"spec": asked}), method)
    done = await in_thread(buf_curl, service.target(), *arguments)
    assert json.loads(done.stdout)["choices"][0]["text"] == "hello", done.stderr
    wrong = asked | {"sampling": {"temperature": 9}}
    arguments = (*reflect, "-d", json.dumps({"spec": wrong}), method)
    failed = await in_thread(buf_curl, service.target(), *arguments)
    assert failed.returncode != 0
    error = json.loads(failed.stderr)
    found = {}
    for detail in error["details"]:
        kind = await reflected(service.channel, version, detail["type"])
        data = base64.b64decode(detail["value"] + "==")
        found[detail["type"]] = MessageToDict(kind.FromString(data))
    assert found["google.rpc.ErrorInfo"]["reason"] == "INVALID_ARGUMENT"
    [violation] = found["google.rpc.BadRequest"]["fieldViolations"]
    assert violation["field"] == "spec.sampling.temperature"
