"""What `qwenvl serve` says when it is ready: version, model, device, memory, addresses, and a line to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
import shlex
import sys

import grpc

from inference_service.commands.report import show_size
from qwenvl.addresses import Address
from qwenvl.command_line import own_version
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.keys import read_keys
from qwenvl.rpc import channel_options


_TIMEOUT_S = 10.0
_DEFAULT_TARGET = "127.0.0.1:50051"
_TITLES = {
    "http_address": "REST",
    "grpc_address": "gRPC",
    "admin_address": "admin",
    "health_address": "health",
    "metrics_address": "metrics",
}


class Banner:
    """The lines about a running service.

    Args:
        addresses: All addresses by the name of their setting.
        api_key_file: The file of API keys, if they are required.
        has_page: Whether the REST API's root is the playground.
    """

    def __init__(
        self, addresses: Mapping[str, Address], *, api_key_file: str | None, has_page: bool
    ) -> None:
        self._addresses = addresses
        self._api_key_file = api_key_file
        self._has_page = has_page

    def lines(self) -> Iterator[str]:
        """Asks the service about itself and yields the lines."""
        yield f"ready: qwen-vl-serving {own_version()}"
        try:
            info, models = self._ask()
        except (grpc.RpcError, OSError, ValueError):  # it is ready, but refuses to say more
            info, models = None, []
        if info is not None and models:
            yield from _describe(info, models)
        for name, address in self._addresses.items():
            title = _TITLES.get(name, name)
            scheme, path = ("http://", "/v1") if name == "http_address" else ("", "")
            near = address.local()
            everywhere = "" if near == address else f", and on all addresses ({address})"
            yield f"{title:<9}{scheme}{near}{path}{everywhere}"
        if self._has_page:
            yield f"{'page':<9}http://{self._addresses['http_address'].local()}/"
        yield f"{'try':<9}{self._example()}"

    def _ask(self) -> tuple[admin_pb.GetServerInfoResponse, list[model_pb.Model]]:
        target = str(self._addresses["grpc_address"].local())
        keys = read_keys(Path(self._api_key_file)) if self._api_key_file else ()
        call = {
            "timeout": _TIMEOUT_S,
            "metadata": [("authorization", f"Bearer {key}") for key in keys[:1]],
        }
        options = channel_options(retry_unavailable=False)
        with grpc.insecure_channel(target, options=options) as channel:
            info: admin_pb.GetServerInfoResponse = admin_grpc.AdminServiceStub(
                channel
            ).GetServerInfo(admin_pb.GetServerInfoRequest(), **call)
            listed: model_pb.ListModelsResponse = model_grpc.ModelServiceStub(channel).ListModels(
                model_pb.ListModelsRequest(), **call
            )
        return info, list(listed.models)

    def _example(self) -> str:
        command = [sys.argv[0] if sys.argv[0].endswith("qwenvl") else "qwenvl", "chat"]
        target = str(self._addresses["grpc_address"].local())
        if target != _DEFAULT_TARGET:
            command += ["--grpc-target", target]
        if self._api_key_file:
            command += ["--api-key-file", self._api_key_file]
        return shlex.join([*command, "Who are you?"])


def _describe(info: admin_pb.GetServerInfoResponse, models: list[model_pb.Model]) -> Iterator[str]:
    model = models[0]
    names = " ".join(model.name for model in models)
    yield f"{'model':<9}{names} ({model.family}, {info.max_model_len} tokens of context)"
    slow = f"; {info.slow_path}" if info.slow_path else ""
    yield f"{'device':<9}{info.device}, {info.dtype}{slow}"
    memory = model.memory
    cache_tokens = memory.kv_cache_bytes // max(1, memory.kv_bytes_per_token)
    yield (
        f"{'memory':<9}weights {show_size(memory.weight_bytes)},"
        f" KV cache {show_size(memory.kv_cache_bytes)} = {cache_tokens} tokens"
    )
