"""Boxes from the model's tokens to the caller, beside the text that holds them."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from inference_service.backend import answering
from inference_service.backend.prompts import PromptWorkers
from inference_service.backend.run import run
from inference_service.families.registry import FAMILIES
from inference_service.model_spec import BoxNotation
from inference_service.text.output import boxes
from inference_service.text.output.box_json import read_json_boxes
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from tests.grpc_api.asking import image_part, refusal, spec_of, text_part, until, user
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


BEGUN = (
    '[{"bbox_2d": [0, 0, 500, 500], "label": "a"}, {"bbox_2d": [1, 2, 3, 4], "label": "b", "x": '
)


def noted_readers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each text was read for boxes in this thread, that of the event loop."""
    here, noted = threading.current_thread(), []

    def reader(*args: Any) -> Any:
        noted.append(threading.current_thread() is here)
        return read_json_boxes(*args)

    monkeypatch.setattr(boxes, "read_json_boxes", reader)
    return noted


def continued(**fields: Any) -> chat_pb.ChatCompletionSpec:
    return spec_of(
        messages=[
            user(image_part(draw("red", "circle").png), TEXT),
            message_pb.Message(role=message_pb.ROLE_ASSISTANT, parts=[text_part(BEGUN)]),
        ],
        template=chat_pb.TemplateOptions(continue_final_message=True),
        response=RESPONSE,
        n=2,
        **fields,
    )


@pytest.mark.parametrize("stop", [[], ["圆"]])
async def test_long_texts_are_read_for_boxes_in_a_thread(
    service: Service, monkeypatch: pytest.MonkeyPatch, stop: list[str]
) -> None:
    """A message that is continued is read anew at the end of each answer."""
    noted = noted_readers(monkeypatch)
    spec = continued()
    spec.stop.strings.extend(stop)

    async def found() -> list[list[str]]:
        choices = (await service.create(spec)).choices
        return [[box.label for box in choice.groundings] for choice in choices]

    expected = await found()
    assert all(expected)
    assert noted == [True, True]
    monkeypatch.setattr(answering, "_CHARACTERS_HERE", len(BEGUN) - 1)
    assert await found() == expected
    assert noted[2:] == [False, False]


async def test_long_answers_are_read_in_a_thread_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = noted_readers(monkeypatch)
    monkeypatch.setattr(answering, "_CHARACTERS_HERE", 1.5 * len(TEXT))
    spec = spec_of(image_part(draw("red", "circle").png), TEXT, response=RESPONSE, n=2)
    answer = await service.create(spec)
    assert [len(choice.groundings) for choice in answer.choices] == [1, 2]
    assert sorted(noted) == [False, True]  # the second is twice as long


async def test_a_token_that_ends_no_answer_needs_no_thread(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a stop string might end it, and much be read then."""
    monkeypatch.setattr(answering, "_CHARACTERS_HERE", -1)
    runs: list[int] = []
    run_there = PromptWorkers.run

    async def counted(prompts: PromptWorkers, characters: int, *asked: Any) -> Any:
        runs.append(characters)
        return await run_there(prompts, characters, *asked)

    monkeypatch.setattr(PromptWorkers, "run", counted)
    spec = spec_of(image_part(draw("red", "circle").png), TEXT, response=RESPONSE, n=2)
    spec.stop.strings.append("never")
    await service.create(spec)
    with_stop = len(runs)
    runs.clear()
    spec.stop.Clear()
    await service.create(spec)
    assert with_stop == len(runs) < 10


async def test_an_abort_before_the_engine_reads_long_texts_in_a_thread_too(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = noted_readers(monkeypatch)
    monkeypatch.setattr(answering, "_CHARACTERS_HERE", len(BEGUN) - 1)

    def aborted(*args: Any, **options: Any) -> Any:
        return run(*args, **options | {"aborted": lambda: True})

    monkeypatch.setattr(answering, "run", aborted)
    answer = await service.create(continued())
    assert {choice.text for choice in answer.choices} == {""}
    assert noted == [False, False]
    await until(lambda: not service.engine.live)
