"""A front on a real socket around an engine without a model, and the small model directory that it serves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.engine_client.interface import EngineState
from inference_service.grpc_api.server import Front
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from tests.grpc_api.echo_engine import EchoEngine
from tests.support.published_configs import published_files, write_files


LIMIT = 32 * 2**20
NAMES = ("echo", "echo-too")
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}\
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL without weights whose tokens are bytes: Chinese takes three tokens for a character."""
    directory = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    files = published_files()
    config, text = files["config.json"], files["config.json"]["text_config"]
    config |= {"vision_start_token_id": 259, "vision_end_token_id": 260}
    config |= {"image_token_id": 261, "video_token_id": 262}
    text |= {"vocab_size": 263, "eos_token_id": 258, "max_position_embeddings": 4096}
    files["generation_config.json"] |= {"eos_token_id": [258, 256]}
    files["preprocessor_config.json"]["size"] = {
        "shortest_edge": 4 * 32 * 32,
        "longest_edge": 100 * 32 * 32,
    }
    return write_files(directory, files)


@pytest.fixture(scope="session")
def model(model_dir: Path) -> ServedModel:
    return ServedModel.load(model_dir, NAMES)


@dataclass
class Service:
    """A running front and everything a caller needs."""

    front: Front
    backend: LocalBackend
    model: ServedModel
    engine: EchoEngine
    channel: grpc.aio.Channel
    chat: chat_grpc.ChatServiceStub
    models: model_grpc.ModelServiceStub
    admin: admin_grpc.AdminServiceStub
    completions: completion_grpc.CompletionServiceStub
    decisions: decision_grpc.DecisionServiceStub

    def target(self, name: str = "grpc") -> str:
        return f"127.0.0.1:{self.front.ports[name]}"

    async def create(
        self, spec: chat_pb.ChatCompletionSpec, **options: Any
    ) -> chat_pb.CreateChatCompletionResponse:
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        return await self.chat.CreateChatCompletion(request, **({"timeout": 20} | options))

    def stream(self, spec: chat_pb.ChatCompletionSpec, **options: Any) -> grpc.aio.UnaryStreamCall:
        request = chat_pb.StreamChatCompletionRequest(spec=spec)
        return self.chat.StreamChatCompletion(request, **({"timeout": 20} | options))


OpenService = Callable[..., Awaitable[Service]]


def channel_to(target: str) -> grpc.aio.Channel:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", LIMIT)]
    return grpc.aio.insecure_channel(target, options=options)


@pytest.fixture
async def open_service(model: ServedModel) -> AsyncIterator[OpenService]:
    """Opens fronts with settings of the test's own.

    `ready=False` leaves the engine loading, `served` is a model in place of the fixture's.
    """
    services: list[Service] = []

    async def opens(
        *, ready: bool = True, served: ServedModel | None = None, **changes: Any
    ) -> Service:
        addresses = {"grpc_address": "127.0.0.1:0", "admin_address": "127.0.0.1:0"}
        settings = ServiceSettings(**(addresses | changes))
        engine = EchoEngine((served or model).tokenizer)
        backend = LocalBackend(settings, served or model, engine)
        front = Front(settings, backend)
        await front.start()
        if ready:
            await engine.start()
        channel = channel_to(f"127.0.0.1:{front.ports['grpc']}")
        service = Service(
            front,
            backend,
            served or model,
            engine,
            channel,
            chat_grpc.ChatServiceStub(channel),
            model_grpc.ModelServiceStub(channel),
            admin_grpc.AdminServiceStub(channel),
            completion_grpc.CompletionServiceStub(channel),
            decision_grpc.DecisionServiceStub(channel),
        )
        services.append(service)
        return service

    yield opens
    for service in services:
        await service.channel.close()
        if service.engine.state is not EngineState.CLOSED:
            await service.front.stop(0.0)


@pytest.fixture
async def service(open_service: OpenService) -> Service:
    return await open_service()
