"""Anthropic's client and the demo model: the same answers as through OpenAI's API, tokens that add up, image sizes."""

from __future__ import annotations

import base64
from collections.abc import Iterator
import io
from typing import Any

import anthropic
from anthropic.types import ImageDimensionsTooLargeError, Message
from PIL import Image
import pytest
import requests

from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from tests.e2e.conftest import Served
from tests.rest_adapter.anthropic.conftest import strict
from tests.support.images import draw


QUESTION = "What is in this picture?"
CIRCLE = draw("red", "circle")


def encoded(png: bytes) -> dict[str, Any]:
    data = base64.b64encode(png).decode()
    return {"type": "base64", "media_type": "image/png", "data": data}


def asked(source: dict[str, Any], **image: Any) -> list[Any]:
    """A conversation about an image."""
    content = [{"type": "image", "source": source} | image, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def png_of(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def claude(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.http, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def max_pixels(served: Served) -> int:
    with served.channel() as channel:
        answer = model_grpc.ModelServiceStub(channel).GetModel(model_pb.GetModelRequest())
    return int(answer.model.image_limits.max_pixels)


def over_openai(served: Served, url: str, **fields: Any) -> requests.Response:
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": "qwen-vl", "temperature": 0, "max_tokens": 64} | fields
    body["messages"] = [{"role": "user", "content": content}]
    return requests.post(f"{served.http}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.both_backends
def test_the_same_text_as_over_the_other_api(
    served: Served, claude: anthropic.Anthropic, image_host: str
) -> None:
    expected = over_openai(served, CIRCLE.data_uri).json()["choices"][0]["message"]["content"]
    assert "red" in expected
    url = {"type": "url", "url": f"http://{image_host}/red-circle.png"}
    for source in (encoded(CIRCLE.png), url):
        options: Any = {
            "model": "qwen-vl",
            "max_tokens": 64,
            "messages": asked(source),
            "extra_body": {"temperature": 0},
        }
        message = claude.messages.create(**options)
        assert [block.text for block in message.content if block.type == "text"] == [expected]
        assert message.stop_reason == "end_turn"
        with claude.messages.stream(**options) as stream:
            assert "".join(stream.text_stream) == expected
            final = stream.get_final_message()
        assert final.usage.output_tokens == message.usage.output_tokens
        del options["max_tokens"], options["extra_body"]
        counted = claude.messages.count_tokens(**options)
        for used in (message.usage, final.usage):
            cached = used.cache_read_input_tokens or 0
            assert used.input_tokens + cached == counted.input_tokens


@pytest.mark.both_backends
def test_a_prefill_is_continued(served: Served) -> None:
    messages = [*asked(encoded(CIRCLE.png)), {"role": "assistant", "content": "A red"}]
    body = {"model": "qwen-vl", "max_tokens": 64, "temperature": 0, "messages": messages}
    answer = requests.post(f"{served.http}/v1/messages", json=body, timeout=60).json()
    text = strict(Message, answer).content[0].text
    assert "circle" in text
    assert "red" not in text


@pytest.mark.both_backends
def test_a_stop_sequence_is_told(served: Served) -> None:
    body = {"model": "qwen-vl", "max_tokens": 64, "temperature": 0, "stop_sequences": ["circle"]}
    body["messages"] = asked(encoded(CIRCLE.png))
    answer = requests.post(f"{served.http}/v1/messages", json=body, timeout=60).json()
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "circle")


def test_a_billing_header_does_not_keep_prompts_apart(served: Served) -> None:
    """It has a digest of the request, and comes first."""
    used = []
    for digest in ("0a1b2", "3c4d5"):
        header = f"x-anthropic-billing-header: cc_version=2.1; cch={digest};"
        texts = (header, "You describe images in few words. " * 20)
        body = {
            "model": "qwen-vl",
            "max_tokens": 4,
            "system": [{"type": "text", "text": text} for text in texts],
            "messages": asked(encoded(CIRCLE.png)),
        }
        answer = requests.post(f"{served.http}/v1/messages", json=body, timeout=60).json()
        used.append(strict(Message, answer).usage)
    assert used[0].input_tokens > used[1].input_tokens
    assert used[1].cache_read_input_tokens > 0


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (1, 1)])
def test_an_oversized_image_is_refused_with_the_size_that_fits(
    served: Served, claude: anthropic.Anthropic, max_pixels: int, shape: tuple[int, int]
) -> None:
    side = int((2 * max_pixels / (shape[0] * shape[1])) ** 0.5)
    size = (shape[0] * side, shape[1] * side)
    error_policy: Any = {"transformations": {"oversized_image": "error"}}
    ask: Any = {"model": "qwen-vl", "max_tokens": 4}
    with pytest.raises(ImageDimensionsTooLargeError) as caught:
        claude.messages.create(messages=asked(encoded(png_of(size)), **error_policy), **ask)
    assert f"{size[0]} x {size[1]}" in caught.value.message
    details = caught.value.details
    assert details.paths == ["messages.0.content.0"]
    ratio = details.max_side_length_pixels / max(size)
    fitting = (int(size[0] * ratio), int(size[1] * ratio))
    assert fitting[0] * fitting[1] > 0.9 * max_pixels
    claude.messages.create(messages=asked(encoded(png_of(fitting)), **error_policy), **ask)
    claude.messages.create(messages=asked(encoded(png_of(size))), **ask)


def test_an_oversized_image_at_a_url(
    served: Served, claude: anthropic.Anthropic, image_host: str
) -> None:
    """The size of an image behind a URL is known only to the service."""
    url = f"http://{image_host}/red-circle.png"
    options = {"oversized_image": "error"}
    refused = over_openai(served, url, mm_processor_kwargs=options)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "image_too_large")
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert "256 x 256" in error["message"]
    assert over_openai(served, url, mm_processor_kwargs={}).status_code == 200
    source = {"type": "url", "url": url}
    with pytest.raises(ImageDimensionsTooLargeError, match=r"messages\.0\.content\.0\.source\.url"):
        claude.messages.create(
            model="qwen-vl", max_tokens=4, messages=asked(source, transformations=options)
        )
