"""What the demo model says about pictures that other code than its own drew: the shares that its card promises."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import pytest
import requests

from inference_service.demo.evaluate import examine
from inference_service.demo.naming import ZH_COLOUR, ZH_KIND
from inference_service.demo.trials import iou, unseen_trials
from qwenvl import Client
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.e2e.conftest import Served
from tests.support.pictures import draw_scene, print_word, scenes


NUMBERS = (("none",), ("one",), ("two", "两"), ("three", "三"), ("four", "四"))
WORDS = ("CAT", "42", "STOP", "GO", "2026", "OPEN", "SUN", "7", "TAXI", "SALE", "Hi", "book")

Named = tuple[bytes, str, str]
"""A picture, a question, and what the answer must hold."""


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc_target) as opened:
        yield opened


def colours(language: str) -> list[Named]:
    asked = []
    for scene in scenes():
        for shape in scene[:2]:
            if language == "en":
                question, right = f"What color is the {shape.shape}?", shape.colour
            else:
                question, right = f"{ZH_KIND[shape.shape]}是什么颜色？", ZH_COLOUR[shape.colour]
            asked.append((draw_scene(scene), question, right))
    return asked


def kinds(language: str) -> list[Named]:
    asked = []
    for scene in scenes():
        for shape in scene[:2]:
            if language == "en":
                question, right = f"What shape is the {shape.colour} one?", shape.shape
            else:
                question, right = f"{ZH_COLOUR[shape.colour]}的是什么形状？", ZH_KIND[shape.shape]
            asked.append((draw_scene(scene), question, right))
    return asked


def counts(language: str) -> list[Named]:
    question = "How many shapes are there?" if language == "en" else "图中有几个形状？"
    place = 0 if language == "en" else -1
    return [(draw_scene(scene), question, NUMBERS[len(scene)][place]) for scene in scenes()]


def share_right(client: Client, asked: list[Named]) -> float:
    answers = [
        (client.chat(question, images=[picture], temperature=0, max_tokens=64).text, right)
        for picture, question, right in asked
    ]
    hits = [right in answer.lower() for answer, right in answers]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("asked", [colours, kinds, counts])
def test_shapes_of_other_pictures(
    client: Client, asked: Callable[[str], list[Named]], language: str
) -> None:
    assert share_right(client, asked(language)) >= 0.9


@pytest.mark.parametrize("question", ["What does the text say?", "图中的文字是什么？"])
def test_words_of_other_pictures(client: Client, question: str) -> None:
    asked = [(print_word(word), question, word) for word in WORDS]

    assert share_exact(client, asked) >= 0.7


def share_exact(client: Client, asked: list[Named]) -> float:
    answers = [
        client.chat(question, images=[picture], temperature=0, max_tokens=64).text == right
        for picture, question, right in asked
    ]
    return sum(answers) / len(answers)


def over_grpc(served: Served, picture: bytes, question: str) -> list[tuple[str, list[float]]]:
    parts = [
        message_pb.Part(image=message_pb.Image(data=picture)),
        message_pb.Part(text=question),
    ]
    spec = chat_pb.ChatCompletionSpec(
        model="qwen-vl",
        messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=parts)],
        sampling=sampling_pb.SamplingOptions(temperature=0),
        response=chat_pb.ResponseOptions(grounding=True),
    )
    with served.channel() as channel:
        response = chat_grpc.ChatServiceStub(channel).CreateChatCompletion(
            chat_pb.CreateChatCompletionRequest(spec=spec), timeout=60
        )
    return [
        (found.label, [found.box.x_min, found.box.y_min, found.box.x_max, found.box.y_max])
        for found in response.choices[0].groundings
    ]


def over_rest(served: Served, picture: bytes, question: str) -> list[tuple[str, list[float]]]:
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    content = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "text", "text": question},
    ]
    body = {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "grounding": True,
    }
    response = requests.post(f"{served.http}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return [(found["label"], found["box"]) for found in response.json()["choices"][0]["grounding"]]


@pytest.mark.parametrize("ask", [over_grpc, over_rest])
def test_boxes_lie_on_the_shapes(served: Served, ask: Callable[..., list]) -> None:
    overlaps = []
    for scene in scenes()[::2]:
        shape = scene[0]
        found = ask(served, draw_scene(scene), f"Locate the {shape.colour} {shape.shape}.")
        right = [box for label, box in found if label == f"{shape.colour} {shape.shape}"]
        overlaps.append(iou(right[0], shape.box(256)) if right else 0.0)

    assert sum(overlaps) / len(overlaps) >= 0.7


@pytest.mark.parametrize("task", ["colour", "shape", "count", "second_turn", "compare", "other"])
def test_unseen_pictures_of_its_own(client: Client, task: str) -> None:
    for language in ("en", "zh"):
        trials = unseen_trials(task, language, 30)

        assert examine(client, trials) >= 0.8 * len(trials), language
