"""Boxes from the model's tokens to the caller, beside the text that holds them."""

from __future__ import annotations

import dataclasses

import pytest

from inference_service.families.registry import FAMILIES
from inference_service.model_spec import BoxNotation
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from tests.grpc_api.asking import image_part, refusal, spec_of
from tests.grpc_api.conftest import Service
from tests.support.images import draw


TEXT = '[{"bbox_2d": [250, 0, 500, 1000], "label": "圆"}]'
RESPONSE = {"grounding": True}


async def test_whole_answer_and_stream(service: Service) -> None:
    image = draw("red", "circle")
    spec = spec_of(image_part(image.png), TEXT, response=RESPONSE)
    whole = await service.create(spec)
    [choice] = whole.choices
    assert choice.text == TEXT  # as the model wrote it
    [found] = choice.groundings
    [size] = whole.started.images
    assert (found.label, found.image_index) == ("圆", 0)
    assert (found.box.x_min, found.box.x_max, found.box.y_max) == (
        size.original_width / 4,
        size.original_width / 2,
        size.original_height,
    )
    events = [event async for event in service.stream(spec)]
    [finished] = [event.finished for event in events if event.HasField("finished")]
    assert list(finished.groundings) == [found]


async def test_nothing_is_read_that_was_not_asked_for(service: Service) -> None:
    answer = await service.create(spec_of(image_part(draw("red", "circle").png), TEXT))
    assert list(answer.choices[0].groundings) == []
    answer = await service.create(spec_of(TEXT, response=RESPONSE))  # no image, no box
    assert list(answer.choices[0].groundings) == []


async def test_a_family_without_boxes_refuses(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told() -> model_pb.Model:
        request = model_pb.GetModelRequest(name="echo")
        return (await service.models.GetModel(request, timeout=20)).model

    assert "grounding" in (await told()).features
    family = dataclasses.replace(FAMILIES["qwen3_vl"], boxes=BoxNotation.NONE)
    monkeypatch.setitem(FAMILIES, "qwen3_vl", family)
    got = await refusal(service.create(spec_of("x", response=RESPONSE)))
    assert (got.info.reason, got.field) == ("UNSUPPORTED_PARAMETER", "spec.response.grounding")
    assert "grounding" not in (await told()).features
    assert (await told()).coordinate_convention == model_pb.COORDINATE_CONVENTION_UNSPECIFIED


@pytest.mark.parametrize("notation", list(BoxNotation))
async def test_every_notation_has_a_coordinate_convention(
    service: Service, monkeypatch: pytest.MonkeyPatch, notation: BoxNotation
) -> None:
    family = dataclasses.replace(FAMILIES["qwen3_vl"], boxes=notation)
    monkeypatch.setitem(FAMILIES, "qwen3_vl", family)
    told = await service.models.GetModel(model_pb.GetModelRequest(name="echo"), timeout=20)
    expected = {
        BoxNotation.NONE: model_pb.COORDINATE_CONVENTION_UNSPECIFIED,
        BoxNotation.JSON_PIXELS: model_pb.COORDINATE_CONVENTION_PROCESSED_PIXELS,
    }.get(notation, model_pb.COORDINATE_CONVENTION_PER_MILLE)
    assert told.model.coordinate_convention == expected
