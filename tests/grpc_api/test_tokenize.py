"""TokenizeService and rendered prompts: refusals, limits and admission."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from tests.grpc_api.asking import image_part, refusal, spec_of
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import draw


PNG = draw("red", "circle").png


def tokens_of(service: Service) -> tokenize_grpc.TokenizeServiceStub:
    return tokenize_grpc.TokenizeServiceStub(service.channel)


async def render(
    service: Service, spec: chat_pb.ChatCompletionSpec, **fields: Any
) -> chat_pb.RenderChatCompletionResponse:
    request = chat_pb.RenderChatCompletionRequest(spec=spec, **fields)
    return await service.chat.RenderChatCompletion(request, timeout=20)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (spec_of("x" * 5000), "spec.messages"),
        (spec_of("x", model="other"), "spec.model"),
        (spec_of("x", sampling={"top_p": 7}), "spec.sampling.top_p"),
        (spec_of("x", sampling={"logit_bias": {400: 1.0}}), "spec.sampling.logit_bias"),
        (
            spec_of("x", sampling={"allowed_token_ids": [64], "bad_words": ["a"]}),
            "spec.sampling.bad_words",
        ),
        (spec_of(*[image_part(PNG)] * 40), "spec.messages"),
        (spec_of(image_part(b"x")), "spec.messages[0].parts[0].image"),
        (
            spec_of("x", constraint=sampling_pb.Constraint(json_schema='{"not": {}}')),
            "spec.constraint.json_schema",
        ),
    ],
)
async def test_rendering_refuses_what_generation_refuses(
    service: Service, spec: chat_pb.ChatCompletionSpec, field: str
) -> None:
    created = await refusal(service.create(spec))
    rendered = await refusal(render(service, spec))
    assert (rendered.field, rendered.info.reason, rendered.message) == (
        created.field,
        created.info.reason,
        created.message,
    )
    assert rendered.field == field
    assert not service.engine.requests


async def render_text(service: Service, **fields: Any) -> completion_pb.RenderCompletionResponse:
    spec = completion_pb.CompletionSpec(**{"model": "echo"} | fields)
    request = completion_pb.RenderCompletionRequest(spec=spec, return_token_strings=True)
    return await service.completions.RenderCompletion(request, timeout=20)


async def test_a_text_is_rendered_as_it_would_be_completed(service: Service) -> None:
    place = 261  # <|image_pad|>
    fields: dict[str, Any] = {
        "token_ids": {"ids": [5, place, 6]},
        "images": [message_pb.Image(data=PNG, uuid="mine")],
        "sampling": {"temperature": 0, "seed": 3, "bad_words": ["zz"], "allowed_token_ids": [9]},
    }
    found = await render_text(service, **fields)
    assert not service.engine.requests, "rendering is no generation"
    spec = completion_pb.CompletionSpec(model="echo", **fields)
    request = completion_pb.CreateCompletionRequest(spec=spec)
    created = await service.completions.CreateCompletion(request, timeout=20)
    [sent] = service.engine.requests
    assert tuple(found.started.prompt_token_ids) == sent.prompt_token_ids
    assert len(found.token_strings) == len(sent.prompt_token_ids)
    assert found.started.effective_settings == created.started.effective_settings
    assert list(found.started.effective_settings.sampling.bad_words) == ["zz"]
    assert list(found.started.effective_settings.sampling.allowed_token_ids) == [9]
    assert found.started.images == created.started.images
    [(placeholder, image)] = zip(found.placeholders, sent.images, strict=True)
    assert (placeholder.offset, placeholder.length) == (image.start, image.num_tokens)
    assert placeholder.key == image.key
    assert found.max_context_tokens == 2048
    special = await render_text(service, text="<|im_end|>")
    assert list(special.token_strings) == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text": ""}, "spec.text"),
        ({"text": "x", "model": "other"}, "spec.model"),
        ({"text": "x", "sampling": {"top_p": 7}}, "spec.sampling.top_p"),
        ({"token_ids": {"ids": [400]}}, "spec.token_ids"),
        ({"text": "x" * 5000}, "spec.text"),
    ],
)
async def test_rendering_a_text_refuses_what_its_completion_refuses(
    service: Service, fields: dict[str, Any], field: str
) -> None:
    rendered = await refusal(render_text(service, **fields))
    spec = completion_pb.CompletionSpec(**{"model": "echo"} | fields)
    request = completion_pb.CreateCompletionRequest(spec=spec)
    created = await refusal(service.completions.CreateCompletion(request, timeout=20))
    assert (rendered.field, rendered.message) == (created.field, created.message)
    assert rendered.field == field
    assert not service.engine.requests


async def test_special_tokens_of_users_are_text(service: Service) -> None:
    rendered = await render(service, spec_of("<|im_end|>"), return_token_strings=True)
    strings = list(rendered.token_strings)
    assert len(strings) == len(rendered.started.prompt_token_ids)
    assert strings.count("<|im_end|>") == 1, "only the template's own"
    assert rendered.started.prompt_text.count("<|im_end|>") == 2
    assert not rendered.begins_with_reasoning


async def test_ids_outside_the_vocabulary_are_refused(service: Service) -> None:
    for ids in ([-1], [263], [2**31 - 1]):
        failure = await refusal(
            tokens_of(service).Detokenize(tokenize_pb.DetokenizeRequest(token_ids=ids), timeout=20)
        )
        assert (failure.info.reason, failure.field) == ("INVALID_ARGUMENT", "token_ids")


async def test_limits(service: Service) -> None:
    stub = tokens_of(service)
    failure = await refusal(
        stub.Tokenize(tokenize_pb.TokenizeRequest(text="x" * (2**18 + 1)), timeout=60)
    )
    assert (failure.info.reason, failure.field) == ("INVALID_ARGUMENT", "text")
    many = tokenize_pb.DetokenizeRequest(token_ids=[1] * (2**18 + 1))
    failure = await refusal(stub.Detokenize(many, timeout=60))
    assert (failure.info.reason, failure.field) == ("INVALID_ARGUMENT", "token_ids")
    failure = await refusal(stub.Tokenize(tokenize_pb.TokenizeRequest(model="x"), timeout=20))
    assert (failure.info.reason, failure.field) == ("MODEL_NOT_FOUND", "model")
    empty = await stub.Tokenize(tokenize_pb.TokenizeRequest(), timeout=20)
    assert not empty.token_ids


async def test_they_count_as_requests(open_service: OpenService) -> None:
    service = await open_service(max_requests_per_minute=1)
    stub = tokens_of(service)
    await stub.Tokenize(tokenize_pb.TokenizeRequest(text="x"), timeout=20)
    for call in (
        stub.Tokenize(tokenize_pb.TokenizeRequest(text="x"), timeout=20),
        stub.Detokenize(tokenize_pb.DetokenizeRequest(token_ids=[1]), timeout=20),
        render(service, spec_of("x")),
    ):
        failure = await refusal(call)
        assert failure.info.reason == "RATE_LIMIT_EXCEEDED"


async def test_texts_need_no_engine(open_service: OpenService) -> None:
    """Only the context window of a rendered prompt is the engine's."""
    service = await open_service(ready=False)
    found = await tokens_of(service).Tokenize(tokenize_pb.TokenizeRequest(text="x"), timeout=20)
    assert list(found.token_ids) == [found.token_ids[0]]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await render(service, spec_of("x"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
