"""The exported folder."""

from __future__ import annotations

from typing import Any

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer
import torch
from transformers import AutoTokenizer

from demo_training.batches import Codec
from demo_training.export import export
from demo_training.images import MAX_PIXELS, MIN_PIXELS
from inference_service.demo import MODEL_DIR
from inference_service.domain import ChatMessage, ImagePart, Role, TextPart
from inference_service.engine.loader import load_model
from inference_service.families.registry import load_spec
from inference_service.text.jinja_template import JinjaTemplate


FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
}


def test_the_folder_has_its_files_and_nothing_else(network, tokenizer_file, tmp_path):
    export(network.state_dict(), network.config, tokenizer_file, tmp_path / "model")

    assert {file.name for file in (tmp_path / "model").iterdir()} == FILES
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_weights_come_back(network, tokenizer_file, tmp_path):
    export(network.state_dict(), network.config, tokenizer_file, tmp_path)

    loaded = load_file(tmp_path / "model.safetensors")

    assert loaded.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_an_export_replaces_an_older_one(network, tokenizer_file, tmp_path):
    export(network.state_dict(), network.config, tokenizer_file, tmp_path)
    doubled = {name: 2 * value for name, value in network.state_dict().items()}

    export(doubled, network.config, tokenizer_file, tmp_path)

    name = "model.language_model.embed_tokens.weight"
    assert torch.equal(load_file(tmp_path / "model.safetensors")[name], doubled[name])


def test_the_shipped_folder_is_small():
    assert {file.name for file in MODEL_DIR.iterdir()} == FILES
    assert sum(file.stat().st_size for file in MODEL_DIR.iterdir()) <= 15 * 2**20


def test_the_shipped_folder_is_served():
    spec = load_spec(MODEL_DIR)
    model = load_model(MODEL_DIR, dtype=torch.float32, device=torch.device("cpu"))

    assert spec.family == "qwen3_vl"
    assert (spec.image_policy.min_pixels, spec.image_policy.max_pixels) == (MIN_PIXELS, MAX_PIXELS)
    assert model.weight_bytes > 10**7


def test_transformers_reads_the_same_tokens():
    ours = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(MODEL_DIR)

    for text in (
        "<|im_start|>user\nWhat is this?<|im_end|>\n",
        "图里有几个形状？",
        " two  spaces\n\n1234",
    ):
        assert theirs(text)["input_ids"] == ours.encode(text, add_special_tokens=False).ids
    assert theirs.eos_token == "<|im_end|>"


@pytest.mark.parametrize("system", [None, "You are a helpful assistant."])
def test_the_template_writes_what_the_training_encoded(system):
    codec = Codec(Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json")))
    question = "How many shapes are there?"
    messages = [
        ChatMessage(role=Role.USER, parts=(ImagePart(data=b"x"), TextPart(text=question))),
    ]
    wanted = codec.prompt(question, 1, (32, 32))
    if system is not None:
        messages.insert(0, ChatMessage(role=Role.SYSTEM, parts=(TextPart(text=system),)))
        wanted = codec.message("system\n" + system) + wanted

    rendered = JinjaTemplate.from_dir(MODEL_DIR).render(messages)

    assert codec.text(rendered) == wanted


def test_the_template_writes_tools_calls_and_their_answers():
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": 1}}}

    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "seen"},
    ]

    text = tokenizer.apply_chat_template(
        messages,
        tools=[tool],
        tokenize=False,
        add_generation_prompt=True,
    )

    assert isinstance(text, str)
    assert text.startswith("<|im_start|>system\n# Tools\n")
    assert '<tool_call>\n{"name": "look", "arguments": {"at": 1}}\n</tool_call><|im_end|>' in text
    assert "<|im_start|>user\n<tool_response>\nseen\n</tool_response><|im_end|>\n" in text
    assert text.endswith("<|im_start|>assistant\n")
