"""The front of Qwen-VL v1: a base model refuses to chat and goes on, a window forgets turns with their images."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import grpc
import pytest

from inference_service.backend.served_model import ServedModel
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.grpc_api.asking import image_part, refusal, spec_of, user
from tests.grpc_api.conftest import NAMES, Service
from tests.support.qwen_vl_v1 import GOLDEN, golden, processed, with_pads


FEW = sampling_pb.SamplingOptions(max_tokens=4)
COMPLETION = next(p for p in golden("A.json")["prompts"] if p["name"] == "raw_one_image")


@pytest.fixture(scope="module", params=["chatml", "raw"])
def chat_format(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(chat_format, tmp_path_factory) -> ServedModel:
    """In place of the conftest's: the golden vocabulary and configuration, no weights."""
    directory: Path = tmp_path_factory.mktemp("qwen_vl_front")
    for source in (GOLDEN / "qwen.tiktoken", GOLDEN / "configs" / "A" / "config.json"):
        shutil.copy(source, directory)
    (directory / "generation_config.json").write_text(json.dumps({"chat_format": chat_format}))
    window = 700 if chat_format == "chatml" else None
    return ServedModel.load(directory, NAMES, history_window=window)


def file(name: str) -> bytes:
    return (GOLDEN / "images" / f"{name}.png").read_bytes()


async def test_text_completions_with_an_image(service: Service) -> None:
    """As text or as ids, for both models."""
    image = message_pb.Image(data=file("wide_rgb"))
    for prompt in (
        {"text": COMPLETION["text"]},
        {"token_ids": completion_pb.TokenIds(ids=COMPLETION["ids"])},
    ):
        spec = completion_pb.CompletionSpec(model="echo", images=[image], sampling=FEW, **prompt)
        request = completion_pb.CreateCompletionRequest(spec=spec)
        await service.completions.CreateCompletion(request, timeout=20)
        assert list(service.engine.requests[-1].prompt_token_ids) == with_pads(COMPLETION["ids"])
        assert service.engine.pixels == [processed("images/wide_rgb.png", 448).pixels]


@pytest.mark.parametrize("chat_format", ["chatml"], indirect=True)
async def test_the_prompt_of_a_chat_equals_the_original(service: Service) -> None:
    case = golden("chat_context.json")["cases"][0]
    await service.create(spec_of(case["query"], sampling={"max_tokens": 4}))
    assert list(service.engine.requests[-1].prompt_token_ids) == case["ids"]


@pytest.mark.parametrize("chat_format", ["raw"], indirect=True)
async def test_a_base_model_refuses_to_chat_and_goes_on(service: Service) -> None:
    refused = await refusal(service.create(spec_of("Hello!")))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.field == "spec.messages"
    assert "completions" in refused.message
    assert not service.engine.requests
    await test_text_completions_with_an_image(service)


@pytest.mark.parametrize("chat_format", ["chatml"], indirect=True)
async def test_forgotten_turns(service: Service) -> None:
    """Three turns with an image each have 275 tokens and more; the window of 700 holds two of them and the present."""
    names = ("wide_rgb", "gray", "palette", "tall_rgba")
    messages = []
    for name in names:
        messages.append(user(image_part(file(name)), "What is it?"))
        part = message_pb.Part(text=f"It is {name}.")
        messages.append(message_pb.Message(role=message_pb.ROLE_ASSISTANT, parts=[part]))
    spec = spec_of(sampling={"max_tokens": 4}, messages=messages[:-1])
    response = await service.create(spec)
    sent, pixels = service.engine.requests[-1], b"".join(service.engine.pixels)
    assert len(sent.images) == 3
    for span, name in zip(sent.images, names[1:], strict=True):
        shown = pixels[span.pixel_offset : span.pixel_offset + span.pixel_bytes]
        assert shown == processed(f"images/{name}.png", 448).pixels
    usage = {detail.modality: detail.tokens for detail in response.usage.prompt_details}
    assert usage[usage_pb.MODALITY_IMAGE] == 3 * 256
    assert response.usage.prompt_tokens == len(sent.prompt_token_ids)


async def test_only_a_chat_model_reports_chat(service: Service, chat_format: str) -> None:
    request = model_pb.GetModelRequest(name="echo")
    features = set((await service.models.GetModel(request, timeout=20)).model.features)
    assert {"logprobs", "prompt_logprobs", "grounding"} <= features
    of_chat = {"chat", "continue_final_message"}
    assert features & of_chat == (of_chat if chat_format == "chatml" else set())
