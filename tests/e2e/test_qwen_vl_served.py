"""Qwen-VL v1 from a directory to REST: greedy tokens over both endpoints are those of the original code."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from inference_service.domain import ImagePart, Part, Role, TextPart
from inference_service.families.qwen_vl.text import load_tokenizer
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from tests.e2e.conftest import Served, running, serve_directory
from tests.support.qwen_vl_v1 import GOLDEN, SHORT_PROMPTS, chat_request, golden


NAME = "Qwen-VL-Chat"
PROMPTS = {prompt["name"]: prompt for prompt in golden("A.json")["prompts"]}
ANSWERS = {run["name"]: run["new_tokens"] for run in golden("A.json")["generation"]}
TOP = ("positions", "top5_ids", "top5_logits", "logsumexp")
STOPPED = {
    run["name"]: run
    for run in golden("A.json")["generation"]
    if run["name"] in ("stop_single", "stop_pair")
}
CHATS = [name for name in SHORT_PROMPTS if name.startswith("chat_")]
COMPLETIONS = [name for name in SHORT_PROMPTS if name.startswith("raw_")]


@pytest.fixture(scope="module")
def qwen_vl(qwen_vl_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("qwen_vl_served") / "log.txt"
    with running(serve_directory(qwen_vl_a, NAME), log) as product:
        yield product


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def read(path: str) -> bytes:
    return (GOLDEN / path).read_bytes()


def openai_part(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    assert isinstance(part, ImagePart)
    assert part.data is not None
    return {"type": "image_url", "image_url": {"url": data_url(part.data)}}


def openai_messages(prompt: dict[str, Any]) -> list[dict[str, Any]]:
    messages = []
    for message in chat_request(prompt["query"], prompt.get("history"), read=read).messages:
        content: Any = [openai_part(part) for part in message.parts]
        if message.role is Role.ASSISTANT:
            content = content[0]["text"]
        messages.append({"role": message.role.value, "content": content})
    return messages


def post(served: Served, path: str, **body: Any) -> requests.Response:
    values = {"model": NAME, "max_tokens": 32, "return_token_ids": True}
    return requests.post(f"{served.http}/v1/{path}", json=values | body, timeout=120)


def check(served: Served, path: str, name: str, **body: Any) -> dict[str, Any]:
    response = post(served, path, temperature=0, **body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["choices"][0]["token_ids"] == ANSWERS[name]
    return answer


@pytest.mark.parametrize("name", CHATS)
def test_chat_answers_equal_the_original(qwen_vl: Served, name: str) -> None:
    answer = check(qwen_vl, "chat/completions", name, messages=openai_messages(PROMPTS[name]))
    assert answer["prompt_token_ids"] == list(SHORT_PROMPTS[name].ids)
    details = answer["usage"]["prompt_tokens_details"]
    assert details.get("image_tokens", 0) == 256 * len(PROMPTS[name]["images"])


def test_prompt_logprobs(qwen_vl: Served) -> None:
    messages = openai_messages(PROMPTS["chat_one_image"])
    response = post(qwen_vl, "chat/completions", messages=messages, prompt_logprobs=5)
    entries = response.json()["prompt_logprobs"]
    ids = SHORT_PROMPTS["chat_one_image"].ids
    assert len(entries) == len(ids)
    assert entries[0] is None
    with np.load(GOLDEN / "A_logits.npz") as golden_logits:
        expected = {key: golden_logits[f"chat_one_image/{key}"] for key in TOP}
    for position, top_ids, logits, total in zip(*expected.values(), strict=True):
        if position + 1 == len(ids):
            continue  # what comes next is no prompt
        entry = entries[position + 1]
        assert set(map(int, entry)) == {*map(int, top_ids), ids[position + 1]}
        for token_id, logit in zip(top_ids, logits, strict=True):
            found = entry[str(token_id)]["logprob"]
            assert found == pytest.approx(logit - total, abs=5e-5)


@pytest.mark.parametrize("name", COMPLETIONS)
@pytest.mark.parametrize("as_text", [True, False])
def test_text_completions_equal_the_original(qwen_vl: Served, name: str, as_text: bool) -> None:
    """As text, or as the original's own ids with a path between the tags: the images come beside."""
    prompt = PROMPTS[name]
    images = [data_url(read(path)) for path in prompt["images"]]
    extra = {"images": images} if images else {}
    check(qwen_vl, "completions", name, prompt=prompt["text" if as_text else "ids"], **extra)


@pytest.mark.parametrize("name", STOPPED)
def test_stop_words(qwen_vl: Served, name: str) -> None:
    """One token or two; the original then forced <|endoftext|>, which is not said here."""
    tokenizer = load_tokenizer(GOLDEN)
    words = [tokenizer.decode(word) for word in STOPPED[name]["stop_words_ids"]]
    prompt = PROMPTS[STOPPED[name]["prompt"]]["text"]
    response = post(qwen_vl, "completions", prompt=prompt, stop=words, temperature=0)
    [choice] = response.json()["choices"]
    said = STOPPED[name]["new_tokens"][:-1]
    assert choice["token_ids"] == said
    assert choice["text"] == tokenizer.decode(said).removesuffix(words[0])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", words[0])


def test_the_originals_chat(qwen_vl: Served) -> None:
    """It lost the last token of an answer that the limit cut."""
    call = golden("A.json")["chat_call"]
    messages, limit = openai_messages(call), call["max_new_tokens"]
    response = post(qwen_vl, "chat/completions", messages=messages, max_tokens=limit, temperature=0)
    [choice] = response.json()["choices"]
    lost = load_tokenizer(GOLDEN).decode(choice["token_ids"][-1:])
    assert len(choice["token_ids"]) == limit
    assert choice["message"]["content"].removesuffix(lost).strip() == call["response"]


def test_paths_open_nothing(qwen_vl: Served) -> None:
    prompt = PROMPTS["raw_one_image"]
    for asked in (prompt["text"], prompt["ids"]):
        refused = post(qwen_vl, "completions", prompt=asked)
        assert refused.status_code == 400
        assert "1 placeholders for images" in refused.json()["error"]["message"]
    typed = f"<img>{GOLDEN.resolve()}/images/gray.png</img>"
    answer = post(qwen_vl, "chat/completions", messages=[{"role": "user", "content": typed}])
    assert answer.json()["usage"]["prompt_tokens"] < 100  # text, not 256 tokens of an image


def test_too_long_a_conversation_is_refused_by_default(qwen_vl: Served) -> None:
    messages = [{"role": "user", "content": "word " * 9000}]
    refused = post(qwen_vl, "chat/completions", messages=messages)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_what_the_model_is(qwen_vl: Served) -> None:
    with qwen_vl.channel() as channel:
        stub = model_grpc.ModelServiceStub(channel)
        request = model_pb.GetModelRequest(name=NAME)
        model = stub.GetModel(request, timeout=20).model
    assert model.family == "qwen_vl"
    assert [part.name for part in model.parts] == ["vision", "adapter", "language"]
    assert not model.image_limits.exif_transposed
