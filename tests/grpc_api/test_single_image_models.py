"""A model that reads one image refuses a second one at both services."""

from __future__ import annotations

import dataclasses

import grpc

from inference_service.backend.served_model import ServedModel
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.grpc_api.asking import image_part, refusal, spec_of
from tests.grpc_api.conftest import OpenService
from tests.support.images import draw


def single(model: ServedModel) -> ServedModel:
    policy = dataclasses.replace(model.spec.image_policy, max_images=1)
    return dataclasses.replace(model, spec=dataclasses.replace(model.spec, image_policy=policy))


async def test_one_image(open_service: OpenService, model: ServedModel) -> None:
    png = draw("red", "circle").png
    service = await open_service(served=single(model))
    assert (await service.create(spec_of(image_part(png), "what?"))).choices[0].text == "what?"
    refused = await refusal(service.create(spec_of(image_part(png), image_part(png), "what?")))
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "spec.messages")
    assert refused.info.reason == "TOO_MANY_IMAGES"
    spec = completion_pb.CompletionSpec(
        model="echo", text="<|image_pad|>" * 2, images=[message_pb.Image(data=png)] * 2
    )
    request = completion_pb.CreateCompletionRequest(spec=spec)
    refused = await refusal(service.completions.CreateCompletion(request, timeout=20))
    assert (refused.info.reason, refused.field) == ("TOO_MANY_IMAGES", "spec.text")
