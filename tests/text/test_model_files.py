"""Tokenizers and templates from the files that versions of transformers, trainers and editors leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen2Tokenizer

from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.model_files import find_chat_template, has_tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.qwen_text import ORDINARY, QWEN2_VL, SPECIAL, tokenizer_json, write_text_files


BOM = "\ufeff"
TEXTS = [
    "The picture shows a red circle and a blue square.",
    "<|im_start|>user\n图片里有 <|vision_start|><|image_pad|><|vision_end|>?<|im_end|>",
    "it's e\u0301 12345  \n\n\t<tool_call>x</tool_call> 😀",
    "",
]


def added_tokens() -> dict[str, dict[str, Any]]:
    """`added_tokens_decoder`, as tokenizer_config.json of the published models has it."""
    return {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"}
        for token in json.loads(tokenizer_json())["added_tokens"]
    }


def write_parts(directory: Path, *, how: str = "decoder", mark: str = "") -> Path:
    """vocab.json and merges.txt, as Qwen2-VL was published besides tokenizer.json; the added tokens elsewhere."""
    model = json.loads(tokenizer_json())["model"]
    added = {token["content"] for token in added_tokens().values()}
    vocabulary = {text: token for text, token in model["vocab"].items() if text not in added}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (directory / "vocab.json").write_text(mark + json.dumps(vocabulary))
    (directory / "merges.txt").write_text(mark + "\n".join(["#version: 0.2", *merges]) + "\n")
    if how == "decoder":
        config = {"added_tokens_decoder": added_tokens(), "eos_token": "<|im_end|>"}
        (directory / "tokenizer_config.json").write_text(mark + json.dumps(config))
    else:
        ids = {token["content"]: int(key) for key, token in added_tokens().items()}
        (directory / "added_tokens.json").write_text(mark + json.dumps(ids))
        special = {"additional_special_tokens": SPECIAL[1:], "eos_token": {"content": SPECIAL[0]}}
        (directory / "special_tokens_map.json").write_text(mark + json.dumps(special))
    return directory


@pytest.mark.parametrize("mark", ["", BOM])
@pytest.mark.parametrize("how", ["decoder", "legacy"])
def test_vocabulary_and_merges_are_the_tokenizer(how: str, mark: str, tmp_path: Path) -> None:
    whole, parts = (
        JsonTokenizer(tokenizer_json()),
        JsonTokenizer.from_dir(write_parts(tmp_path, how=how, mark=mark)),
    )
    assert has_tokenizer(tmp_path)
    assert parts.special_tokens == whole.special_tokens
    assert parts.vocab_size == whole.vocab_size
    for text in TEXTS:
        assert parts.encode(text) == whole.encode(text)
        assert parts.encode_plain(text) == whole.encode_plain(text)
        assert parts.decode(parts.encode(text), skip_special_tokens=False) == whole.decode(
            whole.encode(text), skip_special_tokens=False
        )


def test_vocabulary_and_merges_as_transformers_reads_them(tmp_path: Path) -> None:
    oracle = Qwen2Tokenizer.from_pretrained(write_parts(tmp_path))
    ours = JsonTokenizer.from_dir(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == oracle.encode(text, add_special_tokens=False)


def test_without_the_special_tokens_there_is_no_tokenizer(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert not has_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    assert has_tokenizer(tmp_path)


def test_tokens_added_in_the_configuration_alone(tmp_path: Path) -> None:
    """Trainers add tokens and save tokenizer_config.json, while tokenizer.json stays the published one."""
    write_text_files(tmp_path, QWEN2_VL)
    first = len(json.loads(tokenizer_json())["model"]["vocab"])
    known = max(map(int, added_tokens()))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    new = {"content": "<|point|>", "special": True, "normalized": False}
    config["added_tokens_decoder"] = added_tokens() | {str(known + 1): new}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = JsonTokenizer.from_dir(tmp_path)
    assert ours.special_tokens["<|point|>"] == known + 1
    assert ours.encode("a<|point|>")[-1] == known + 1
    assert known + 1 not in ours.encode_plain("a<|point|>")
    assert ours.vocab_size == known + 2 > first
    config["added_tokens_decoder"][str(known + 1)] = new | {"content": "<|other|>"}
    config["added_tokens_decoder"][str(known + 5)] = new
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"'<\|point\|>' has the id \d+, but \d+ in tokenizer\.json"
    ):
        JsonTokenizer.from_dir(tmp_path)


def test_the_configuration_decides_what_is_special(tmp_path: Path) -> None:
    definition = json.loads(tokenizer_json())
    for token in definition["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    config = {"added_tokens_decoder": added_tokens()}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = JsonTokenizer.from_dir(tmp_path)
    assert set(ours.special_tokens) == set(SPECIAL)
    assert not set(ours.special_tokens) & set(ORDINARY)
    assert ours.special_ids.isdisjoint(ours.encode_plain(TEXTS[1]))


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    write_text_files(tmp_path, "{{ eos_token }}")
    expected = JsonTokenizer.from_dir(tmp_path)
    for path in tmp_path.iterdir():
        path.write_text(BOM + path.read_text())
    assert JsonTokenizer.from_dir(tmp_path).encode(TEXTS[1]) == expected.encode(TEXTS[1])
    assert find_chat_template(tmp_path) == "{{ eos_token }}"
    assert JinjaTemplate.from_dir(tmp_path).render([]) == "<|im_end|>"


PLACES: dict[str, Any] = {
    "chat_template.jinja": "jinja",
    "chat_template.json": {"chat_template": "json"},
    "processor_config.json": {"chat_template": "processor"},
    "tokenizer_config.json": {"chat_template": [{"name": "default", "template": "tokenizer"}]},
}


def test_places_of_a_template_in_their_order(tmp_path: Path) -> None:
    for name, content in PLACES.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    for name, wanted in zip(PLACES, ("jinja", "json", "processor", "tokenizer"), strict=True):
        assert find_chat_template(tmp_path) == wanted
        (tmp_path / name).unlink()
    assert find_chat_template(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("merges.txt", "a b c\n"),
        ("merges.txt", "never seen\n"),
        ("merges.txt", b"\xff\xfe\x00"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": "y"}}'),
    ],
)
def test_files_that_are_broken(name: str, content: str | bytes, tmp_path: Path) -> None:
    write_parts(tmp_path)
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=r"vocab\.json|merges\.txt|tokenizer_config\.json"):
        JsonTokenizer.from_dir(tmp_path)
