"""The Responses API on the demo model: the same answers as the other endpoints give, and conversations with images."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import sys
from typing import Any, Literal

import openai
from pydantic import BaseModel
import pytest

from tests.e2e.conftest import Served, running
from tests.support.images import Drawn, draw, gallery


pytestmark = pytest.mark.both_backends("storing")
QUESTION = "What is in this picture?"
GREEDY: Any = {"temperature": 0}
TOKENS = 32


@pytest.fixture(scope="module")
def storing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("responses")
    store = folder / "responses.sqlite"
    command = [
        sys.executable,
        "-m",
        "inference_service.cli",
        "serve",
        "--backend",
        request.param,
        "--response-store",
        str(store),
    ]
    with running(command, folder / "log.txt") as product:
        yield product
    assert Path(store).exists()


@pytest.fixture
def client(storing: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{storing.http}/v1", api_key="none", max_retries=0) as client:
        yield client


def asked_of(image: Drawn) -> list[Any]:
    return [
        {
            "role": "user",
            "content": [
                {"type": "input_image", "image_url": image.data_uri, "detail": "auto"},
                {"type": "input_text", "text": QUESTION},
            ],
        }
    ]


def chat_answer(client: openai.OpenAI, image: Drawn) -> tuple[str, int]:
    content: Any = [
        {"type": "image_url", "image_url": {"url": image.data_uri}},
        {"type": "text", "text": QUESTION},
    ]
    answer = client.chat.completions.create(
        model="qwen-vl",
        messages=[{"role": "user", "content": content}],
        max_tokens=TOKENS,
        **GREEDY,
    )
    assert answer.usage is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens


@pytest.mark.parametrize(("colour", "shape"), [("red", "circle"), ("blue", "square")])
def test_the_same_text_as_chat_completions(client: openai.OpenAI, colour: str, shape: str) -> None:
    image = draw(colour, shape)
    text, prompt_tokens = chat_answer(client, image)
    arguments: Any = {"model": "qwen-vl", "input": asked_of(image)}
    answer = client.responses.create(**arguments, max_output_tokens=TOKENS, **GREEDY)
    assert answer.output_text == text
    assert colour in text
    assert answer.usage is not None
    assert answer.usage.input_tokens == prompt_tokens
    assert client.responses.input_tokens.count(**arguments).input_tokens == prompt_tokens
    with client.responses.stream(**arguments, max_output_tokens=TOKENS, **GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == text


def test_a_conversation_about_an_image(client: openai.OpenAI) -> None:
    image = draw("green", "square")
    first = client.responses.create(model="qwen-vl", input=asked_of(image), **GREEDY)
    question = "What colour is it?"
    stored = client.responses.create(
        model="qwen-vl", input=question, previous_response_id=first.id, **GREEDY
    )
    history: Any = [*asked_of(image), *(item.to_dict() for item in first.output)]
    sent = client.responses.create(
        model="qwen-vl", input=[*history, {"role": "user", "content": question}], **GREEDY
    )
    assert stored.output_text == sent.output_text
    assert stored.usage is not None
    assert sent.usage is not None
    assert stored.usage.input_tokens == sent.usage.input_tokens
    assert client.responses.retrieve(stored.id).output_text == stored.output_text


class Seen(BaseModel):
    """What `.parse()` returns."""

    colour: Literal["red", "green", "blue", "yellow"]
    shape: Literal["circle", "square", "triangle", "star"]


def test_the_text_is_parsed(client: openai.OpenAI) -> None:
    for image in gallery()[:3]:
        answer = client.responses.parse(
            model="qwen-vl", input=asked_of(image), text_format=Seen, max_output_tokens=100
        )
        assert answer.status == "completed"
        assert isinstance(answer.output_parsed, Seen)
    schema = {"type": "object", "not": {}}
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="qwen-vl", input="x", text=form)
    assert caught.value.param == "text.format.schema"


def test_the_settings_in_effect_are_told(client: openai.OpenAI) -> None:
    created = client.responses.create(model="qwen-vl", input="Hello", max_output_tokens=2)
    answer: dict[str, Any] = created.to_dict()
    assert answer["status"] == "incomplete"
    assert answer["max_output_tokens"] == 2
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        assert isinstance(answer[name], int | float)
    assert answer["top_p"] > 0


@pytest.mark.parametrize(
    ("item", "param"),
    [
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]},
            "image_url",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}],
            },
            "image_url",
        ),
    ],
)
def test_errors_name_the_field(client: openai.OpenAI, item: Any, param: str) -> None:
    turn: Any = {"role": "user", "content": "hi"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="qwen-vl", input=[turn, item])
    assert caught.value.param == f"input[1].content[0].{param}"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="qwen-vl", input="x", max_output_tokens=0)
    assert caught.value.param == "max_output_tokens"


def test_a_summary_of_the_model_goes_on(client: openai.OpenAI) -> None:
    first = client.responses.create(
        model="qwen-vl", input=asked_of(draw("red", "circle")), **GREEDY
    )
    # Its types have no messages of users in the output, so it is read as JSON.
    compacted = client.responses.with_raw_response.compact(
        model="qwen-vl", previous_response_id=first.id, extra_body={"max_output_tokens": TOKENS}
    )
    items: Any = json.loads(compacted.text)["output"]
    assert [item["type"] for item in items] == ["message", "compaction"]
    answer = client.responses.create(
        model="qwen-vl",
        input=[*items, {"role": "user", "content": QUESTION}],
        max_output_tokens=TOKENS,
        **GREEDY,
    )
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.input_tokens > 0
