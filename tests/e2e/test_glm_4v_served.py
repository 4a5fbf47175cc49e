"""GLM-4V-9B from a directory to REST: greedy tokens and log probabilities are those of the original code.

The vocabulary is made up, so that prompts go as the original's ids.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from tests.e2e.conftest import Served, running, serve_directory
from tests.support.glm_4v import DATA, GOLDEN, build_checkpoint, write_vocabulary
from tests.support.qwen_vl_v1 import GOLDEN as IMAGES


NAME = "glm-4v-9b"
CHATS = {chat["name"]: chat for chat in DATA["chat"]}
ANSWERS = {run["name"]: run["new_tokens"] for run in DATA["generation"]}


@pytest.fixture(scope="module")
def glm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = build_checkpoint(tmp_path_factory.mktemp("glm_4v_served"))
    write_vocabulary(directory)
    with running(serve_directory(directory, NAME), directory / "log.txt") as product:
        yield product
    (directory / "model.safetensors").unlink()


def image(name: str) -> str:
    data = (IMAGES / "images" / f"{name}.png").read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def complete(served: Served, chat: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {
        "model": NAME,
        "prompt": chat["ids"],
        "images": [image(m["image"]) for m in chat["messages"] if m.get("image")],
        "temperature": 0,
        "return_token_ids": True,
    }
    response = requests.post(f"{served.http}/v1/completions", json=body | fields, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


@pytest.mark.parametrize("name", CHATS)
def test_greedy_tokens(glm: Served, name: str) -> None:
    assert complete(glm, CHATS[name], max_tokens=16)["token_ids"] == ANSWERS[name]


def test_prompt_logprobs(glm: Served) -> None:
    choice = complete(glm, CHATS["image_turns"], max_tokens=1, prompt_logprobs=5)
    entries = choice["prompt_logprobs"]
    with np.load(GOLDEN / "logits.npz") as arrays:
        expected = {name: arrays[f"image_turns/{name}"] for name in ("positions", "top5_logits")}
        ids, total = arrays["image_turns/top5_ids"], arrays["image_turns/logsumexp"]
    assert entries[0] is None
    assert len(entries) == len(choice["prompt_token_ids"]) == 56
    for row, position in enumerate(expected["positions"][:-1]):
        found = entries[position + 1]
        wanted = expected["top5_logits"][row] - total[row]
        told = [found[str(token_id)]["logprob"] for token_id in ids[row]]
        np.testing.assert_allclose(told, wanted, atol=2e-4, rtol=0)


def test_a_conversation_with_an_image(glm: Served) -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": image("wide_rgb")}},
    ]
    body = {"model": NAME, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
    url = f"{glm.http}/v1/chat/completions"
    answer = requests.post(url, json=body, timeout=120)
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 38
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A shape."}]
    for messages in (
        [{"role": "user", "content": [*parts, parts[1]]}],
        [*turns, {"role": "user", "content": parts}],
    ):
        refused = requests.post(url, json=body | {"messages": messages}, timeout=120)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == ("messages", "too_many_images")
    body["messages"] = [*turns, {"role": "user", "content": "And its colour?"}]
    answer = requests.post(url, json=body, timeout=120)
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 38


def test_the_model_has_no_boxes(glm: Served) -> None:
    body = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "grounding": True}
    refused = requests.post(f"{glm.http}/v1/chat/completions", json=body, timeout=120)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "grounding"
