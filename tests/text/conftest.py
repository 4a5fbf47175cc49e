"""A small Qwen tokenizer, ours and transformers', for each template."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.qwen_text import TEMPLATES, tokenizer_json, write_text_files


DEMO = Path("inference_service/demo/model")


@pytest.fixture(scope="session")
def tokenizer() -> JsonTokenizer:
    return JsonTokenizer(tokenizer_json())


@pytest.fixture(scope="session", params=[*TEMPLATES, "demo"])
def text_dir(request, tmp_path_factory) -> Path:
    """A directory with tokenizer and template: written after Qwen2-VL and Qwen3-VL, and the demo model's own."""
    if request.param == "demo":
        return DEMO
    directory = tmp_path_factory.mktemp(request.param)
    return write_text_files(directory, TEMPLATES[request.param])


@pytest.fixture(scope="session")
def reference(text_dir) -> PreTrainedTokenizerFast:
    """Transformers' tokenizer of the directory."""
    return PreTrainedTokenizerFast.from_pretrained(text_dir)
