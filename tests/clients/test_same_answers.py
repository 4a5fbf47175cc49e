"""The greedy answer of the model in float32 is the same through every API, whole and as a stream."""

from __future__ import annotations

import base64
from collections.abc import Callable
import json
from typing import Any, Final

import pytest
import requests

from qwenvl import Client, image, predicate, user
from tests.e2e.conftest import Served
from tests.support.images import Drawn, draw
from tests.support.strict_answers import problems_of


TOKENS: Final = 48
QUESTIONS: Final = (
    "What is in this picture?",
    "How many shapes are there?",
    "这张图里有什么?",
)
PICTURES: Final = (("red", "circle"), ("blue", "star"))
GREEDY: Final[dict[str, Any]] = {"model": "qwen-vl", "temperature": 0}


def post(served: Served, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The documents of an answer, each of the types of the clients."""
    response = requests.post(served.http + path, json=GREEDY | body, timeout=120)
    assert response.status_code == 200, response.text
    kind = response.headers["content-type"]
    assert not problems_of(path, response.status_code, kind, response.text)
    if not body.get("stream"):
        return [response.json()]
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def over_chat(served: Served, picture: Drawn, question: str, *, stream: bool) -> str:
    parts = [
        {"type": "image_url", "image_url": {"url": picture.data_uri}},
        {"type": "text", "text": question},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": TOKENS}
    found = post(served, "/v1/chat/completions", body | {"stream": stream})
    if not stream:
        return str(found[0]["choices"][0]["message"]["content"])
    return "".join(
        choice["delta"].get("content") or "" for chunk in found for choice in chunk["choices"]
    )


def over_responses(served: Served, picture: Drawn, question: str, *, stream: bool) -> str:
    parts = [
        {"type": "input_image", "image_url": picture.data_uri},
        {"type": "input_text", "text": question},
    ]
    body = {"input": [{"role": "user", "content": parts}], "max_output_tokens": TOKENS}
    found = post(served, "/v1/responses", body | {"stream": stream})
    if not stream:
        return str(found[0]["output"][0]["content"][0]["text"])
    return "".join(
        event["delta"] for event in found if event["type"] == "response.output_text.delta"
    )


def over_messages(served: Served, picture: Drawn, question: str, *, stream: bool) -> str:
    data = base64.b64encode(picture.png).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    parts = [{"type": "image", "source": source}, {"type": "text", "text": question}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": TOKENS}
    found = post(served, "/v1/messages", body | {"stream": stream})
    if not stream:
        return str(found[0]["content"][0]["text"])
    return "".join(
        event["delta"]["text"] for event in found if event["type"] == "content_block_delta"
    )


def over_grpc(served: Served, picture: Drawn, question: str, *, stream: bool) -> str:
    asked = user(image(picture.png), question)
    with Client(served.grpc_target) as client:
        if stream:
            return "".join(client.stream(asked, temperature=0, max_tokens=TOKENS))
        return client.chat(asked, temperature=0, max_tokens=TOKENS).text


APIS: Final[tuple[Callable[..., str], ...]] = (over_chat, over_responses, over_messages, over_grpc)


@pytest.mark.both_backends("product")
@pytest.mark.parametrize(("colour", "shape"), PICTURES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_about_an_image(product: Served, colour: str, shape: str, question: str) -> None:
    picture = draw(colour, shape)
    answers = {
        (api.__name__, stream): api(product, picture, question, stream=stream)
        for api in APIS
        for stream in (False, True)
    }
    assert len(set(answers.values())) == 1, answers
    assert answers["over_chat", False]


@pytest.mark.both_backends("product")
def test_a_text_completion_of_the_prompt_of_a_chat(product: Served) -> None:
    """Text completions take no images; the same tokens are answered alike."""
    messages = [{"role": "user", "content": "What can you do?"}]
    body = {"messages": messages, "max_tokens": TOKENS, "return_token_ids": True}
    [chat] = post(product, "/v1/chat/completions", body)
    prompt = {"prompt": chat["prompt_token_ids"], "max_tokens": TOKENS}
    [whole] = post(product, "/v1/completions", prompt)
    pieces = post(product, "/v1/completions", prompt | {"stream": True})
    text = chat["choices"][0]["message"]["content"]
    assert whole["choices"][0]["text"] == text
    assert "".join(choice["text"] for one in pieces for choice in one["choices"]) == text
    with Client(product.grpc_target) as client:
        ids = chat["prompt_token_ids"]
        assert client.complete(ids, temperature=0, max_tokens=TOKENS).text == text


def test_decisions_are_the_same_over_both_apis(product: Served) -> None:
    picture = draw("red", "circle")
    parts = [{"type": "input_image", "image_url": picture.data_uri}]
    question = {"type": "predicate", "instructions": "There is a red circle."}
    asked = {"input": [{"role": "user", "content": parts}], "questions": [question]}
    body = {"model": "qwen-vl"} | asked
    response = requests.post(f"{product.http}/v1/decisions", json=body, timeout=60)
    status, kind = response.status_code, response.headers["content-type"]
    assert (status, problems_of("/v1/decisions", status, kind, response.text)) == (200, [])
    answer = response.json()["answers"][0]
    with Client(product.grpc_target) as client:
        [decision] = client.decide(user(image(picture.png)), [predicate("There is a red circle.")])
    assert answer["probability"] == pytest.approx(decision.probability, abs=1e-6)
