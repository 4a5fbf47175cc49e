"""Answers in the form that was asked for, about images, by the clients that people use."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import json
import re
import sys
import threading
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
import jsonschema
import openai
import pydantic
import pytest
import requests

from qwenvl import Client, InvalidRequestError
from tests.e2e.conftest import Served, running
from tests.support.bounds import fewest_right
from tests.support.images import Drawn, draw, gallery
from tests.support.json_schemas import Schema, schemas


pytestmark = pytest.mark.both_backends
QUESTION = "What is in this picture?"
SEEN = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue", "yellow"]},
        "shape": {"enum": ["circle", "square", "triangle", "star"]},
    },
    "required": ["colour", "shape"],
    "additionalProperties": False,
}


class Shape(pydantic.BaseModel):
    """What `.parse()` returns."""

    colour: Literal["red", "green", "blue", "yellow"]
    shape: Literal["circle", "square", "triangle", "star"]
    sides: Literal[0, 3, 4, 10]


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A product of its own: hostile forms must not end the one that other tests use."""
    log = tmp_path_factory.mktemp("forms") / "log.txt"
    command = [sys.executable, "-m", "inference_service.cli", "serve", "--cpu-threads", "1"]
    with running([*command, "--backend", request.param], log) as product:
        yield product


@pytest.fixture
def client(served: Served):
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def messages(image: Drawn, question: str = QUESTION) -> list[Any]:
    url = {"type": "image_url", "image_url": {"url": image.data_uri}}
    return [{"role": "user", "content": [url, {"type": "text", "text": question}]}]


def post(served: Served, **fields: Any) -> requests.Response:
    body = {"model": "qwen-vl", "messages": messages(draw("red", "circle")), "max_tokens": 800}
    return requests.post(f"{served.http}/v1/chat/completions", json=body | fields, timeout=120)


def asked(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_the_sdk_parses_its_own_classes(client: openai.OpenAI) -> None:
    for image in gallery()[:4]:
        answer = client.chat.completions.parse(
            model="qwen-vl", messages=messages(image), response_format=Shape, max_tokens=200
        )
        assert isinstance(answer.choices[0].message.parsed, Shape)
        assert answer.choices[0].finish_reason == "stop"


def test_a_stream_of_the_sdk(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="qwen-vl",
        messages=messages(draw("blue", "square")),
        response_format=Shape,
        max_tokens=200,
        n=2,
        temperature=1.0,
        seed=5,
    ) as stream:
        final = stream.get_final_completion()
    assert [isinstance(choice.message.parsed, Shape) for choice in final.choices] == [True, True]


def test_the_form_is_enforced_and_the_picture_is_seen(served: Served) -> None:
    """The greedy choice between words is the model's own."""
    right = 0
    for image in gallery():
        form = {"structured_outputs": {"choice": ["A red circle", "A blue square", "A green star"]}}
        text = post(served, messages=messages(image), temperature=0, **form).json()
        answer = text["choices"][0]["message"]["content"]
        assert answer in form["structured_outputs"]["choice"]
        right += image.is_named_in(answer)
    assert right > 0


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": r"[A-C]{2}-\d{3}"}, r"[A-C]{2}-\d{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"structured_outputs": {"grammar": 'start: "(" /[0-9]{1,3}/ ")"'}}, r"\(\d{1,3}\)"),
        ({"response_format": asked(SEEN)}, r'\{"colour": "\w+", "shape": "\w+"\}'),
        ({"response_format": {"type": "json_object"}, "max_tokens": 40}, r"\{[^\n]*"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1.2])
def test_every_kind(
    served: Served, fields: dict[str, Any], pattern: str, temperature: float
) -> None:
    response = post(served, temperature=temperature, n=2, seed=3, **fields)
    assert response.status_code == 200, response.text
    for choice in response.json()["choices"]:
        assert re.fullmatch(pattern, choice["message"]["content"]), choice
        assert choice["finish_reason"] == "stop" or "max_tokens" in fields


def test_text_completions(served: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="qwen-vl", prompt="A colour:", max_tokens=20, extra_body={"regex": "(red|blue){2}"}
    )
    assert re.fullmatch("(red|blue){2}", answer.choices[0].text)


def test_the_typed_client(served: Served) -> None:
    picture = draw("green", "star").png
    with Client(served.grpc_target) as client:
        answer = client.chat(QUESTION, images=[picture], json_schema=SEEN, max_tokens=100)
        jsonschema.validate(json.loads(answer.text), SEEN)
        assert client.chat(QUESTION, images=[picture], choices=["a", "b"]).text in ("a", "b")
        assert re.fullmatch("[0-9]{4}", client.complete("x", regex="[0-9]{4}").text)
        with pytest.raises(InvalidRequestError, match="unclosed group"):
            client.chat(QUESTION, regex="(a")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "'properties.a.not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "string", "format": "regex"}, "'format' 'regex'"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ],
)
def test_what_cannot_be_enforced_is_named(
    served: Served, schema: dict[str, Any], words: str
) -> None:
    response = post(served, response_format=asked(schema))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("response_format", "invalid_value")
    assert error["message"].startswith("response_format ")
    assert words in error["message"]


HOSTILE = [
    {"response_format": asked({"type": "integer", "multipleOf": 99999989})},
    {"response_format": asked({"type": "string", "pattern": "(?:a?){2000}a{2000}"})},
    {"response_format": asked({"anyOf": [{"const": n} for n in range(5001)]})},
    {
        "response_format": asked(
            {"type": "object", "properties": {f"k{n}": {} for n in range(2500)}}
        )
    },
    {"guided_regex": r"(\w+\s?){1,2000}\."},
    {"guided_regex": "(" * 1500 + ")" * 1500},
    {"guided_grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
]


def test_exploding_forms_are_refused_while_a_stream_goes_on(
    served: Served, client: openai.OpenAI
) -> None:
    post(served, guided_regex="a")  # the trial process has started
    over = threading.Event()
    chunks: list[float] = []

    def stream() -> None:
        while not over.is_set():
            for _ in client.chat.completions.create(
                model="qwen-vl", messages=messages(draw("red", "star")), stream=True, max_tokens=60
            ):
                chunks.append(1)

    with ThreadPoolExecutor(8) as threads:
        streaming = threads.submit(stream)
        try:
            answers = list(threads.map(lambda form: post(served, **form), HOSTILE))
        finally:
            over.set()
        came = len(chunks)
        streaming.result(60)
    assert [answer.status_code for answer in answers] == [400] * len(HOSTILE)
    assert came > 5, "the forms keep the service from answering"  # usually more than 100
    served.wait_idle()
    assert post(served, guided_regex="[ab]{3}").status_code == 200


def over_chat(served: Served, schema: Schema, chance: int) -> str | None:
    answer = post(
        served, response_format=asked(schema), temperature=1.0, seed=chance, max_tokens=300
    )
    assert answer.status_code == 200, (schema, answer.text)
    choice = answer.json()["choices"][0]
    return None if choice["finish_reason"] == "length" else choice["message"]["content"]


def over_responses(served: Served, schema: Schema, chance: int) -> str | None:
    parts = [
        {"type": "input_image", "image_url": draw("red", "circle").data_uri},
        {"type": "input_text", "text": QUESTION},
    ]
    form = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    body = {
        "model": "qwen-vl",
        "input": [{"role": "user", "content": parts}],
        "text": {"format": form},
        "temperature": 1.0,
        "seed": chance,
        "max_output_tokens": 300,
    }
    answer = requests.post(f"{served.http}/v1/responses", json=body, timeout=120)
    assert answer.status_code == 200, (schema, answer.text)
    document = answer.json()
    if document["status"] == "incomplete":
        return None
    return "".join(part["text"] for part in document["output"][-1]["content"])


def over_messages(served: Served, schema: Schema, chance: int) -> str | None:
    del chance  # Anthropic's API has no seed
    data = base64.b64encode(draw("red", "circle").png).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    body = {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": parts}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
        "temperature": 1.0,
        "max_tokens": 300,
    }
    answer = requests.post(f"{served.http}/v1/messages", json=body, timeout=120)
    assert answer.status_code == 200, (schema, answer.text)
    document = answer.json()
    if document["stop_reason"] == "max_tokens":
        return None
    return "".join(block["text"] for block in document["content"])


def validates(ask: Callable[[Served, Schema, int], str | None], served: Served, count: int) -> None:
    """Every complete answer is valid, and most are complete."""
    complete: list[bool] = []

    @seed(7)
    @settings(
        deadline=None,
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(schemas(), st.integers(0, 2**31))
    def check(schema: Schema, chance: int) -> None:
        text = ask(served, schema, chance)
        complete.append(text is not None)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)

    check()
    fewest = fewest_right(len(complete), 0.8)
    if ask is not over_messages:  # a seed fixes the draws: only another rounding turns some
        fewest = max(fewest, round(0.6 * len(complete)))
    assert sum(complete) >= fewest


EVERY_API = pytest.mark.parametrize("ask", [over_chat, over_responses, over_messages])


@EVERY_API
def test_a_sample_of_schemas_with_an_image(
    served: Served, ask: Callable[[Served, Schema, int], str | None]
) -> None:
    validates(ask, served, 10)


@pytest.mark.full
@EVERY_API
def test_200_schemas_with_an_image(
    served: Served, ask: Callable[[Served, Schema, int], str | None]
) -> None:
    validates(ask, served, 200)
