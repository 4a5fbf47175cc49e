"""CompletionService over a socket: the prompt reaches the engine as it was written, and nothing around it."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from inference_service.text.limits import MAX_CHARACTERS
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.grpc_api.asking import Refusal, refusal
from tests.grpc_api.conftest import OpenService, Service
from tests.support.images import draw


PLACE = 261  # <|image_pad|> of the model directory in conftest.py
IMAGE = message_pb.Image(data=draw("red", "circle").png, uuid="mine")


def spec_of(prompt: str | list[int], **fields: Any) -> completion_pb.CompletionSpec:
    values: dict[str, Any] = {"model": "echo", "sampling": {"temperature": 0}} | fields
    if isinstance(prompt, str):
        return completion_pb.CompletionSpec(text=prompt, **values)
    return completion_pb.CompletionSpec(token_ids={"ids": prompt}, **values)


async def create(
    service: Service, spec: completion_pb.CompletionSpec
) -> completion_pb.CreateCompletionResponse:
    request = completion_pb.CreateCompletionRequest(spec=spec)
    return await service.completions.CreateCompletion(request, timeout=20)


async def refused(service: Service, spec: completion_pb.CompletionSpec) -> Refusal:
    return await refusal(create(service, spec))


def ids_of(service: Service, text: str) -> list[int]:
    return service.model.tokenizer.encode(text)


async def test_text_is_tokenised_without_a_template(service: Service) -> None:
    response = await create(service, spec_of("Once upon a", request_id="mine"))
    assert list(service.engine.requests[-1].prompt_token_ids) == ids_of(service, "Once upon a")
    assert response.choices[0].text == "Once upon a"
    assert response.choices[0].finish_reason == usage_pb.FINISH_REASON_STOP
    assert (response.started.request_id, response.started.model) == ("mine", "echo")
    assert response.usage.prompt_tokens == len("Once upon a")


async def test_control_tokens_in_a_prompt_are_control_tokens(service: Service) -> None:
    await create(service, spec_of("<|im_start|>user\nx<|im_end|>"))
    assert service.engine.requests[-1].prompt_token_ids[0] == 257
    assert service.engine.requests[-1].prompt_token_ids[-1] == 258


async def test_token_ids_go_as_they_are(service: Service) -> None:
    ids = [5, 258, 72, 257]
    response = await create(
        service,
        spec_of(ids, response={"return_prompt_token_ids": True, "return_prompt_text": True}),
    )
    assert list(service.engine.requests[-1].prompt_token_ids) == ids
    assert list(response.started.prompt_token_ids) == ids
    tokenizer = service.model.tokenizer
    assert response.started.prompt_text == tokenizer.decode(ids, skip_special_tokens=False)
    assert response.started.prompt_text.endswith("<|im_start|>")


@pytest.mark.parametrize("as_ids", [True, False])
async def test_images_stand_at_their_places(service: Service, as_ids: bool) -> None:
    text = "<|vision_start|><|image_pad|><|vision_end|>what?"
    prompt = ids_of(service, text) if as_ids else text
    response = await create(service, spec_of(prompt, images=[IMAGE]))
    [span] = service.engine.requests[-1].images
    assert (span.start, span.num_tokens) == (1, response.started.images[0].tokens)
    assert service.engine.requests[-1].prompt_token_ids.count(PLACE) == span.num_tokens
    assert response.started.images[0].uuid == "mine"
    assert response.choices[0].text == "what?"


async def test_stream_has_the_events_of_a_chat(service: Service) -> None:
    request = completion_pb.StreamCompletionRequest(
        spec=spec_of("ab", n=2, logprobs=sampling_pb.LogprobOptions(prompt_logprobs=0))
    )
    events = [event async for event in service.completions.StreamCompletion(request, timeout=20)]
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1], kinds.count("finished")) == ("started", "usage", 2)
    texts = [
        "".join(e.delta.text for e in events if e.HasField("delta") and e.delta.choice_index == i)
        for i in range(2)
    ]
    assert texts == ["ab", "abab"]
    assert sum(len(e.delta.prompt_logprobs) for e in events) == 2
    assert events[-1].usage.completion_tokens == 8


async def test_sixteen_tokens_without_a_limit(open_service: OpenService) -> None:
    """The request's limit, then the operator's, then OpenAI's."""
    for settings, asked, limit in (
        ({}, {}, 16),
        ({"max_tokens_default": 20}, {}, 20),
        ({"tutorial_defaults": True}, {}, 1024),
        ({"max_tokens_default": 20}, {"max_tokens": 3}, 3),
    ):
        service = await open_service(**settings)
        response = await create(service, spec_of("x" * 30, sampling=asked))
        assert response.started.effective_settings.sampling.max_tokens == limit
        assert response.usage.completion_tokens == min(limit, 31)


async def test_the_only_token_of_a_prompt_has_an_entry(service: Service) -> None:
    logprobs = sampling_pb.LogprobOptions(prompt_logprobs=1)
    response = await create(service, spec_of("a", logprobs=logprobs, n=2))
    assert [entry.HasField("chosen") for entry in response.started.prompt_logprobs] == [False]


async def test_boxes_of_a_text_completion(service: Service) -> None:
    said = '[{"bbox_2d": [250, 0, 500, 1000], "label": "cat"}]'
    prompt = f"<|vision_start|><|image_pad|><|vision_end|>{said}"
    sampling = {"max_tokens": len(said) + 1}
    spec = spec_of(prompt, images=[IMAGE], response={"grounding": True}, sampling=sampling)
    response = await create(service, spec)
    [choice] = response.choices
    [found] = choice.groundings
    assert (choice.text, found.label) == (said, "cat")
    assert found.box.x_min == response.started.images[0].original_width / 4


WRONG = {
    "no prompt": (completion_pb.CompletionSpec(model="echo"), "spec.text"),
    "empty text": (spec_of(""), "spec.text"),
    "no ids": (spec_of([]), "spec.token_ids"),
    "negative id": (spec_of([3, -1]), "spec.token_ids"),
    "id beyond the vocabulary": (spec_of([3, 263]), "spec.token_ids"),
    "an image without a place": (spec_of("x", images=[IMAGE]), "spec.text"),
    "a place without an image": (spec_of([PLACE]), "spec.token_ids"),
    "an image without a source": (spec_of("x", images=[message_pb.Image()]), "spec.images[0]"),
    "a broken image": (
        spec_of("<|image_pad|>", images=[message_pb.Image(data=b"x")]),
        "spec.images[0]",
    ),
    "too many images": (spec_of("x", images=[IMAGE] * 9), "spec.images"),
    "sampling": (spec_of("x", sampling={"top_p": 2}), "spec.sampling.top_p"),
    "n": (spec_of("x", n=0), "spec.n"),
    "prompt too long": (spec_of("x" * 2048), "spec.text"),
    "absurdly long prompt": (spec_of("x" * (MAX_CHARACTERS + 1)), "spec.text"),
    "ids too long": (spec_of([1] * 2048), "spec.token_ids"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_refusals_name_the_field(service: Service, case: str) -> None:
    spec, field = WRONG[case]
    refusal = await refused(service, spec)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.field == field
    assert (await create(service, spec_of("still there"))).choices[0].text == "still there"


async def test_unknown_model_and_id_in_use(service: Service) -> None:
    assert (await refused(service, spec_of("x", model="other"))).code is grpc.StatusCode.NOT_FOUND
    service.engine.hold_at = 0
    request = completion_pb.StreamCompletionRequest(spec=spec_of("x", request_id="a"))
    call = service.completions.StreamCompletion(request, timeout=20)
    async for _ in call:
        break
    again = await refused(service, spec_of("x", request_id="a"))
    assert again.code is grpc.StatusCode.ALREADY_EXISTS
    call.cancel()
