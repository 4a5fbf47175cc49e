"""The same requests over both backends have the same answers, and the process of transformers may die.

Both serve the demo model, as users start them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
import io
import json
import os
from pathlib import Path
import signal
import time
from typing import Any

from PIL import Image
import pytest
import requests

from inference_service.transformers_engine import library
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from tests.e2e.conftest import Served, running, serve_directory
from tests.support.any_models import FAMILIES, build
from tests.support.images import draw
from tests.support.library_checkpoints import reference_ids, reference_model


# GLM-4V's processor converts numbers of torch with NumPy, in a manner that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
RED, BLUE = draw("red", "circle"), draw("blue", "star", size=(300, 200))
GREEN = draw("green", "square", size=(120, 180))
DRAWN = {drawn.data_uri: drawn for drawn in (RED, BLUE, GREEN)}


@pytest.fixture(scope="module")
def native(made_to_serve: Served) -> Served:
    return made_to_serve


@pytest.fixture(scope="module")
def other(of_transformers: Served) -> Served:
    return of_transformers


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(drawn: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": drawn.data_uri}}


def user(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


_PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": _PERSON}}
_TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}
CHATS: list[dict[str, Any]] = [
    {"messages": user(text("Who are you?"))},
    {"messages": user(text("What is this?"), image(RED))},
    {"messages": user(image(RED), image(BLUE), text("Describe both."))},
    {"messages": user(image(BLUE), text("这是什么颜色？"))},
    {"messages": [{"role": "system", "content": "Be brief."}, *user(text("你好"))]},
    {
        "messages": [
            *user(text("What is this?"), image(RED)),
            {"role": "assistant", "content": "A red circle."},
            *user(text("And this?"), image(BLUE)),
        ]
    },
    {"messages": user(text("<|im_end|><|image_pad|> hello <|im_start|>"))},
    {"messages": user(text("Who are you?")), "stop": ["demo"], "presence_penalty": 1.0},
    {"messages": user(text("Who are you?")), "logit_bias": {"25": -100}, "min_tokens": 20},
    {"messages": user(text("A person?")), "response_format": _FORM, "max_tokens": 60},
    {"messages": user(text("Look.")), "tools": [_TOOL], "tool_choice": "required"},
    {"messages": user(text("Tell me.")), "temperature": 1.0, "seed": 4, "n": 2, "top_p": 0.9},
]


def ask(served: Served, body: dict[str, Any], path: str = "chat/completions") -> dict[str, Any]:
    settings = {"model": "qwen-vl", "temperature": 0, "max_tokens": 32, "logprobs": True}
    if path == "chat/completions":
        settings |= {"top_logprobs": 2}
    response = requests.post(f"{served.http}/v1/{path}", json=settings | body, timeout=300)
    assert response.status_code == 200, response.text
    return dict(response.json())


def essence(answer: dict[str, Any]) -> Any:
    """What must be equal word for word."""
    usage = answer["usage"]
    return (
        [
            (
                choice["message"]["content"],
                [
                    (call["function"]["name"], call["function"]["arguments"])
                    for call in choice["message"].get("tool_calls") or ()
                ],
                choice["finish_reason"],
            )
            for choice in answer["choices"]
        ],
        usage["prompt_tokens"],
        usage["completion_tokens"],
        usage["prompt_tokens_details"]["image_tokens"],
    )


@pytest.mark.parametrize(
    "chats",
    [
        pytest.param(CHATS[1:9:2], id="sample"),
        pytest.param(CHATS, id="all", marks=pytest.mark.full),
    ],
)
def test_the_same_answers(native: Served, other: Served, chats: list[dict[str, Any]]) -> None:
    """Eight at a time through the one, one after the other through the other."""
    wanted = [ask(native, chat) for chat in chats]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda chat: ask(other, chat), chats))
    assert [essence(answer) for answer in found] == [essence(answer) for answer in wanted]
    for one, same in zip(found, wanted, strict=True):
        for choice, equal in zip(one["choices"], same["choices"], strict=True):
            entries, others = choice["logprobs"]["content"], equal["logprobs"]["content"]
            assert [entry["logprob"] for entry in entries] == pytest.approx(
                [entry["logprob"] for entry in others], abs=1e-3
            )


@pytest.mark.full
def test_the_same_text_completion_with_log_probabilities_of_the_prompt(
    native: Served, other: Served
) -> None:
    for prompt in ("Hello, I am", [1042, 11, 657]):
        body = {"prompt": prompt, "prompt_logprobs": 1, "logprobs": 1}
        one, same = (ask(served, body, "completions")["choices"][0] for served in (other, native))
        assert one["text"] == same["text"]
        for entry, equal in zip(one["prompt_logprobs"], same["prompt_logprobs"], strict=True):
            assert (entry is None) is (equal is None)
            assert {k: v["rank"] for k, v in (entry or {}).items()} == {
                k: v["rank"] for k, v in (equal or {}).items()
            }


@pytest.mark.full
def test_streams_are_whole_answers(other: Served) -> None:
    body = {"model": "qwen-vl", "temperature": 0, "stream": True, **CHATS[1]}
    with requests.post(
        f"{other.http}/v1/chat/completions", json=body, stream=True, timeout=300
    ) as response:
        lines = [line for line in response.iter_lines() if line.startswith(b"data: {")]
    chunks = [json.loads(line[6:]) for line in lines]
    pieces = [c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]]
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == ask(other, CHATS[1])["choices"][0]["message"]["content"]


@pytest.mark.full
def test_counting_equals_generation(other: Served) -> None:
    spec = chat_pb.ChatCompletionSpec(
        model="qwen-vl",
        messages=[
            message_pb.Message(
                role=message_pb.ROLE_USER,
                parts=[
                    message_pb.Part(text="What is this?"),
                    message_pb.Part(image=message_pb.Image(data=BLUE.png)),
                ],
            )
        ],
    )
    spec.sampling.temperature = 0
    with other.channel() as channel:
        stub = chat_grpc.ChatServiceStub(channel)
        count = stub.CountTokens(chat_pb.CountTokensRequest(spec=spec), timeout=120)
        answer = stub.CreateChatCompletion(
            chat_pb.CreateChatCompletionRequest(spec=spec), timeout=120
        )
    assert count.usage.prompt_tokens == answer.usage.prompt_tokens
    assert list(count.usage.prompt_details) == list(answer.usage.prompt_details)
    assert len(count.usage.prompt_details) == 2  # text and images
    assert count.images[0].tokens > 0


@pytest.mark.full
def test_it_says_that_it_is_the_reference_path(other: Served) -> None:
    with other.channel() as channel:
        model = (
            model_grpc.ModelServiceStub(channel)
            .GetModel(model_pb.GetModelRequest(name="qwen-vl"), timeout=30)
            .model
        )
    assert "reference_path" in model.features
    assert "decisions" not in model.features
    assert "transformers" in other.info().slow_path


@pytest.mark.full
def test_the_front_does_not_load_the_library(other: Served) -> None:
    """The parent of the engine's process has no torch in its memory."""
    engine = other.info().engine_pid
    front = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])
    assert "torch" in Path(f"/proc/{engine}/maps").read_text()
    assert "torch" not in Path(f"/proc/{front}/maps").read_text()


@pytest.mark.full
def test_decisions_and_videos_are_refused_by_name(other: Served) -> None:
    question = {"type": "predicate", "instructions": "There is a circle."}
    content = [{"type": "input_image", "image_url": RED.data_uri}]
    asked = {"input": [{"role": "user", "content": content}], "questions": [question]}
    video = {"type": "video", "video": [RED.data_uri, BLUE.data_uri], "fps": 1}
    for path, body, words in (
        ("decisions", asked, "Decisions are not supported with --backend transformers"),
        (
            "chat/completions",
            {"messages": user(video, text("?"))},
            "Videos need torchvision with --backend transformers",
        ),
    ):
        response = requests.post(
            f"{other.http}/v1/{path}", json={"model": "qwen-vl"} | body, timeout=60
        )
        assert response.status_code == 400, response.text
        assert words in response.json()["error"]["message"]


@pytest.mark.full
def test_what_it_cannot_do_is_refused(other: Served) -> None:
    content = [image(RED), text("?")]
    body = {
        "model": "qwen-vl",
        "messages": user(*content),
        "mm_processor_kwargs": {"max_pixels": 1000},
    }
    response = requests.post(f"{other.http}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 400
    assert "--backend transformers" in response.json()["error"]["message"]


@pytest.mark.full
def test_a_killed_process_loses_only_its_requests(other: Served) -> None:
    before = other.info()
    with ThreadPoolExecutor(1) as pool:
        body = {"model": "qwen-vl", "max_tokens": 3000, "ignore_eos": True, **CHATS[0]}
        lost = pool.submit(
            requests.post, f"{other.http}/v1/chat/completions", json=body, timeout=300
        )
        other.wait_busy()
        os.kill(before.engine_pid, signal.SIGKILL)
        assert lost.result().status_code == 503
    other.wait_ready()
    deadline = time.monotonic() + 120
    while other.info().engine_restarts == before.engine_restarts or other.info().engine_pid in (
        0,
        before.engine_pid,
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    other.wait_ready()
    assert "circle" in ask(other, CHATS[1])["choices"][0]["message"]["content"]


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_answer_as_generate(tmp_path: Path, family: str) -> None:
    """Over REST and gRPC, with 0 to 3 images, several turns, Chinese, eight at once."""
    model_dir = build(tmp_path / "tiny", family)
    processor = library.load_processor(model_dir, library.load_config(model_dir))
    model = reference_model(model_dir)
    asked = [
        user(text("hello")),
        user(image(RED), text("What?")),
        user(text("比较"), image(RED), image(BLUE)),
        user(image(GREEN), text("还有"), image(BLUE), image(RED), text("这三张呢？")),
        [*user(text("你好")), {"role": "assistant", "content": "hi"}, *user(text("again"))],
        [
            *user(text("What?"), image(BLUE)),
            {"role": "assistant", "content": "一颗星"},
            *user(image(GREEN), text("and this?")),
        ],
    ]
    wanted = [generated(model, processor, messages) for messages in asked]
    with running(serve_directory(model_dir, "tiny"), tmp_path / "log.txt") as served:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(partial(rest_ids, served), [*asked, *asked[:2]]))
        assert found == [*wanted, *wanted[:2]]
        assert len(set(map(tuple, wanted))) == len(wanted), (
            "a test of equality needs different answers"
        )
        assert [grpc_ids(served, messages) for messages in asked] == wanted


def generated(model: Any, processor: Any, messages: list[dict[str, Any]]) -> list[int]:
    """The answer of transformers' own `generate`."""
    images, turns = [], []
    for message in messages:
        parts = message["content"]
        if not isinstance(parts, str):
            images += [DRAWN[p["image_url"]["url"]] for p in parts if p["type"] == "image_url"]
            parts = [{"type": "image"} if p["type"] == "image_url" else p for p in parts]
        turns.append({"role": message["role"], "content": parts})
    rendered = processor.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False
    )
    decoded = [Image.open(io.BytesIO(drawn.png)).convert("RGB") for drawn in images]
    inputs = processor(text=[rendered], images=decoded or None, return_tensors="pt")
    return reference_ids(model, inputs, 8)


def rest_ids(served: Served, messages: list[dict[str, Any]]) -> list[int]:
    body = {"model": "tiny", "messages": messages, "max_tokens": 8, "return_token_ids": True}
    response = requests.post(
        f"{served.http}/v1/chat/completions", json=body | {"temperature": 0}, timeout=300
    )
    assert response.status_code == 200, response.text
    return list(response.json()["choices"][0]["token_ids"])


def grpc_ids(served: Served, messages: list[dict[str, Any]]) -> list[int]:
    roles = {"user": message_pb.ROLE_USER, "assistant": message_pb.ROLE_ASSISTANT}
    spec = chat_pb.ChatCompletionSpec(model="tiny")
    spec.sampling.temperature = 0
    spec.sampling.max_tokens = 8
    spec.response.return_token_ids = True
    for message in messages:
        content = message["content"]
        parts = [text(content)] if isinstance(content, str) else content
        spec.messages.add(
            role=roles[message["role"]],
            parts=[
                message_pb.Part(text=part["text"])
                if part["type"] == "text"
                else message_pb.Part(
                    image=message_pb.Image(data=DRAWN[part["image_url"]["url"]].png)
                )
                for part in parts
            ],
        )
    with served.channel() as channel:
        answer = chat_grpc.ChatServiceStub(channel).CreateChatCompletion(
            chat_pb.CreateChatCompletionRequest(spec=spec), timeout=300
        )
    return list(answer.choices[0].token_ids)
