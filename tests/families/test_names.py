"""The name of a message is rendered where the family's chat format has names, and refused elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_service.domain import ChatMessage, ChatRequest, Role, TextPart
from inference_service.errors import UnsupportedParameterError
from inference_service.families.glm_4v.text import GlmChat
from inference_service.families.glm_4v.text import load_tokenizer as load_glm_tokenizer
from inference_service.families.registry import FAMILIES, family_of, load_spec
from inference_service.model_spec import ModelSpec
from inference_service.text.prompt import ChatFormat
from inference_service.text.tokenizer import Tokenizer
from tests.support.glm_4v import write_vocabulary
from tests.support.qwen_text import QWEN2_VL, QWEN3_VL, token_id, write_text_files
from tests.support.qwen_vl_v1 import GOLDEN


DEMO = Path("inference_service/demo/model")
CONFIGS = Path("tests/golden/configs")
WITH_NAMES = """\
{% for message in messages %}<|im_start|>{{ message.role }}\
{% if message.name %} name={{ message.name }}{% endif %}{{ '\\n' }}\
{{ message.content if message.content is string else '<|image_pad|>' }}<|im_end|>
{% endfor %}"""
JINJA = {
    "qwen2_vl": ("Qwen2-VL-7B-Instruct", QWEN2_VL),
    "qwen2_5_vl": ("Qwen2.5-VL-7B-Instruct", QWEN2_VL),
    "qwen3_vl": ("Qwen3-VL-8B-Instruct", QWEN3_VL),
}


def with_template(directory: Path, family: str, template: str) -> tuple[Tokenizer, ChatFormat]:
    name, _ = JINJA[family]
    ids: dict[str, Any] = {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }
    spec: ModelSpec = replace(load_spec(CONFIGS / name), **ids)
    assert spec.family == family
    return family_of(spec).load_text(write_text_files(directory, template), spec)


def chat_format(directory: Path, family: str) -> ChatFormat:
    if family in JINJA:
        return with_template(directory, family, JINJA[family][1])[1]
    if family == "qwen_vl":
        spec = load_spec(GOLDEN / "configs" / "A")
        return family_of(spec).load_text(GOLDEN, spec)[1]
    assert family == "glm_4v"
    write_vocabulary(directory)
    return GlmChat(load_glm_tokenizer(directory))


def chat(*names: str) -> ChatRequest:
    """Turns of user and assistant whose speakers have these names."""
    messages = tuple(
        ChatMessage(
            role=Role.ASSISTANT if index % 2 else Role.USER, parts=(TextPart(text="x"),), name=name
        )
        for index, name in enumerate(names)
    )
    return ChatRequest(request_id="r", model="m", messages=messages)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_that_is_not_rendered_is_refused(family: str, tmp_path: Path) -> None:
    written = chat_format(tmp_path, family)
    assert written.write(chat("", "", "")).token_ids
    with pytest.raises(UnsupportedParameterError, match="leave it out, or write") as refused:
        written.write(chat("", "", "Ann"))
    assert refused.value.field == "spec.messages[2].name"
    with pytest.raises(
        UnsupportedParameterError, match="the name of assistant messages"
    ) as refused:
        written.write(chat("", "Bot", "Ann"))
    assert refused.value.field == "spec.messages[1].name"


def test_the_demo_model_refuses_names() -> None:
    spec = load_spec(DEMO)
    _, written = family_of(spec).load_text(DEMO, spec)
    with pytest.raises(UnsupportedParameterError):
        written.write(chat("Ann"))


@pytest.mark.parametrize("family", JINJA)
def test_a_name_is_rendered_where_the_template_has_names(family: str, tmp_path: Path) -> None:
    tokenizer, written = with_template(tmp_path, family, WITH_NAMES)
    token_ids = written.write(chat("Ann", "", "安")).token_ids
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == (
        "<|im_start|>user name=Ann\nx<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
        "<|im_start|>user name=安\nx<|im_end|>\n"
    )


def test_a_name_cannot_spell_special_tokens(tmp_path: Path) -> None:
    tokenizer, written = with_template(tmp_path, "qwen3_vl", WITH_NAMES)
    for name in ("<|im_end|>", "\ufdd0", "Ann<|im_start|>", "a<|image_pad|>\ufdd2"):
        token_ids = written.write(chat(name)).token_ids
        special = [tokenizer.token_text(i) for i in token_ids if i in tokenizer.special_ids]
        assert special == ["<|im_start|>", "<|im_end|>"]
        whole = tokenizer.decode(token_ids, skip_special_tokens=False)
        assert whole == f"<|im_start|>user name={name}\nx<|im_end|>\n"
