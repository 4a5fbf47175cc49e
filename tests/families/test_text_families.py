"""Which tokenizer and which chat format a model gets, and what is said where files do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
import shutil

import pytest

from inference_service.families.family import TextOptions
from inference_service.families.qwen_vl.text import QwenVLBase, QwenVLChat
from inference_service.families.registry import family_of, load_spec
from inference_service.model_spec import ModelSpec
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.prompt import ChatFormat
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.qwen_vl_v1 import GOLDEN, chat_request, golden, with_pads


DEMO = Path("inference_service/demo/model")


def load_text(
    model_dir: Path, spec: ModelSpec, history_window: int | None = None
) -> tuple[Tokenizer, ChatFormat]:
    options = TextOptions(history_window=history_window)
    return family_of(spec).load_text(model_dir, spec, options)


@pytest.fixture
def spec() -> ModelSpec:
    return load_spec(GOLDEN / "configs" / "A")


def test_a_template(spec):
    tokenizer, chat = load_text(DEMO, load_spec(DEMO))
    assert isinstance(tokenizer, JsonTokenizer)
    assert isinstance(chat, JinjaChat)
    with pytest.raises(ValueError, match="--history-window"):
        load_text(DEMO, load_spec(DEMO), history_window=100)


def test_qwen_vl(spec):
    tokenizer, chat = load_text(GOLDEN, spec)
    assert tokenizer.special_tokens["<img>"] == spec.vision_start_token_id
    assert isinstance(chat, QwenVLChat)
    _, base = load_text(GOLDEN, replace(spec, is_chat=False))
    assert isinstance(base, QwenVLBase)
    assert not isinstance(base, QwenVLChat)
    with pytest.raises(ValueError, match="--history-window"):
        load_text(GOLDEN, replace(spec, is_chat=False), history_window=100)


def test_the_history_window_is_the_originals(spec):
    case = next(
        c for c in golden("chat_context.json")["cases"] if c["name"] == "truncate_window_80"
    )
    _, chat = load_text(GOLDEN, spec, history_window=case["max_window_size"])
    written = chat.write(chat_request(case["query"], case["history"], case["system"]))
    assert list(written.token_ids) == with_pads(case["ids"])


def test_a_vocabulary_that_does_not_fit(spec, tmp_path):
    with pytest.raises(ValueError, match=r"lacks qwen\.tiktoken: copy from"):
        load_text(tmp_path, spec)
    lines = (GOLDEN / "qwen.tiktoken").read_text().splitlines(keepends=True)
    (tmp_path / "qwen.tiktoken").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"qwen\.tiktoken does not match"):
        load_text(tmp_path, spec)
    shutil.copy(GOLDEN / "qwen.tiktoken", tmp_path)
    load_text(tmp_path, spec)
