"""True answers about true images through both APIs, by the clients that people use."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
import requests

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.e2e.conftest import Served
from tests.support.bounds import assert_mostly_right
from tests.support.images import Drawn, draw, gallery


pytestmark = pytest.mark.both_backends
ENGLISH = "What is in this picture?"
CHINESE = "这是什么?"


def content(image_url: str, question: str) -> list[Any]:
    return [
        {"type": "text", "text": question},
        {"type": "image_url", "image_url": {"url": image_url}},
    ]


def spec(image: Drawn, question: str, **fields: Any) -> chat_pb.ChatCompletionSpec:
    parts = [
        message_pb.Part(image=message_pb.Image(data=image.png)),
        message_pb.Part(text=question),
    ]
    return chat_pb.ChatCompletionSpec(
        model="qwen-vl",
        messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=parts)],
        sampling=sampling_pb.SamplingOptions(temperature=0, max_tokens=64),
        **fields,
    )


def over_grpc(chat: chat_grpc.ChatServiceStub, image: Drawn, question: str) -> str:
    request = chat_pb.CreateChatCompletionRequest(spec=spec(image, question))
    return chat.CreateChatCompletion(request, timeout=60).choices[0].text


def over_rest(served: Served, image: Drawn, question: str) -> str:
    body = {
        "model": "qwen-vl",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": image.data_uri}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        "max_tokens": 64,
        "temperature": 0,
    }
    response = requests.post(f"{served.http}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("question", [ENGLISH, CHINESE])
def test_colour_and_shape_are_named(chat: chat_grpc.ChatServiceStub, question: str) -> None:
    answers = [(image, over_grpc(chat, image, question)) for image in gallery()]
    assert_mostly_right([p.is_named_in(answer) for p, answer in answers], 0.95)
    # The answer is in the language of the question.
    assert all(answer.isascii() == (question == ENGLISH) for _, answer in answers)


@pytest.mark.parametrize("question", [ENGLISH, CHINESE])
def test_both_apis_give_the_same_answer(
    served: Served, chat: chat_grpc.ChatServiceStub, question: str
) -> None:
    for image in gallery()[::5]:
        assert over_rest(served, image, question) == over_grpc(chat, image, question)


def test_tutorial_client_works_unchanged(served: Served) -> None:
    image = draw("blue", "square")
    response = requests.post(
        f"{served.http}/v1/chat/completions",
        json={
            "model": "qwen-vl",
            "messages": [{"role": "user", "content": content(image.data_uri, ENGLISH)}],
            "max_tokens": 1024,
            "temperature": 0.5,
        },
        timeout=60,
    )
    assert response.status_code == 200
    answer = response.json()["choices"][0]["message"]["content"]
    assert isinstance(answer, str)
    assert answer


@pytest.mark.parametrize("by", ["data", "http://{}/red-circle.png", "\n http://{}/red-circle.png "])
@pytest.mark.parametrize("stream", [False, True])
def test_openai_client(served: Served, image_host: str, by: str, stream: bool) -> None:
    url = draw("red", "circle").data_uri if by == "data" else by.format(image_host)
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        arguments: dict[str, Any] = {
            "model": "qwen-vl",
            "messages": [{"role": "user", "content": content(url, ENGLISH)}],
            "temperature": 0,
            "max_tokens": 64,
        }
        if not stream:
            completion = client.chat.completions.create(**arguments)
            answer, usage = completion.choices[0].message.content, completion.usage
        else:
            chunks = list(
                client.chat.completions.create(
                    **arguments, stream=True, stream_options={"include_usage": True}
                )
            )
            answer = "".join(
                chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
            )
            usage = chunks[-1].usage
            assert chunks[-1].choices == []
        assert usage is not None
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert answer == over_rest(served, draw("red", "circle"), ENGLISH) or answer


def test_completing_the_prompt_of_a_chat_gives_the_answer_of_the_chat(served: Served) -> None:
    """The ids that a chat's prompt has, sent as they are, are answered alike, and have the same probabilities."""
    extra = {"return_token_ids": True, "prompt_logprobs": 2}
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        settings: dict[str, Any] = {
            "model": "qwen-vl",
            "temperature": 0,
            "max_tokens": 8,
            "extra_body": extra,
        }
        chat = client.chat.completions.create(
            messages=[{"role": "user", "content": "Hello"}], **settings
        ).model_dump()
        ids = chat["prompt_token_ids"]
        completion = client.completions.create(prompt=ids, **settings).model_dump()["choices"][0]
        by_text = client.completions.create(
            prompt="<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
            logprobs=0,
            echo=True,
            **settings,
        ).model_dump()["choices"][0]
    assert completion["token_ids"] == chat["choices"][0]["token_ids"]
    assert completion["prompt_logprobs"] == chat["prompt_logprobs"]
    assert completion["prompt_logprobs"][0] is None
    assert len(completion["prompt_logprobs"]) == len(ids)
    assert by_text["prompt_token_ids"] == ids[-len(by_text["prompt_token_ids"]) :]
    assert by_text["text"].startswith("<|im_start|>user\nHello")
    assert "".join(by_text["logprobs"]["tokens"]).startswith("<|im_start|>user\nHello")


def test_models_are_listed(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["qwen-vl-demo", "qwen-vl"]
        assert client.models.retrieve("qwen-vl").id == "qwen-vl"


async def stream_text(client: openai.AsyncOpenAI, image: Drawn, question: str) -> str:
    pieces = []
    stream = await client.chat.completions.create(
        model="qwen-vl",
        messages=[{"role": "user", "content": content(image.data_uri, question)}],
        temperature=0,
        max_tokens=64,
        stream=True,
    )
    assert isinstance(stream, openai.AsyncStream)
    async for chunk in stream:
        pieces.append(chunk.choices[0].delta.content or "")
        assert "\ufffd" not in pieces[-1]
    return "".join(pieces)


async def test_32_streams_at_once_get_what_they_get_alone(served: Served) -> None:
    asked = [(image, (ENGLISH, CHINESE)[i % 2]) for i, image in enumerate(gallery())]
    assert len(asked) == 32
    async with openai.AsyncOpenAI(
        base_url=f"{served.http}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        alone = [await stream_text(client, image, question) for image, question in asked]
        together = await asyncio.gather(
            *(stream_text(client, image, question) for image, question in asked)
        )
    assert together == alone
    assert len(set(alone)) > 16  # the images did reach the model
    served.wait_idle()


@pytest.mark.both_backends(sample=True)
def test_swapped_images_swap_the_answers(chat: chat_grpc.ChatServiceStub) -> None:
    red, blue = draw("red", "circle"), draw("blue", "square")
    assert over_grpc(chat, red, ENGLISH) != over_grpc(chat, blue, ENGLISH)


@pytest.mark.both_backends(sample=True)
def test_count_tokens_equals_usage(chat: chat_grpc.ChatServiceStub) -> None:
    asked = spec(draw("green", "star"), ENGLISH)
    counted = chat.CountTokens(chat_pb.CountTokensRequest(spec=asked), timeout=30)
    answered = chat.CreateChatCompletion(
        chat_pb.CreateChatCompletionRequest(spec=asked), timeout=60
    )
    assert counted.usage.prompt_tokens == answered.usage.prompt_tokens
    assert counted.images[0].tokens == next(
        detail.tokens for detail in answered.usage.prompt_details if detail.modality == 2
    )
