"""A small tokenizer and chat templates in the manner of Qwen-VL, with transformers' own as the oracle.

The tokenizer has Qwen2's normaliser, pre-tokeniser and special tokens; its merges are trained on the text below.
The templates are written after those of Qwen2-VL and Qwen3-VL: the same constructs, in words of our own.
"""

from __future__ import annotations

from functools import cache
import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)


SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
ORDINARY = [
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
_WORDS = (
    "The picture shows a red circle and a blue square. What colour is the star on the left? It's green, isn't it?\n"
    "system user assistant You are a helpful assistant. Describe the image in one sentence.\n\n  im_start im_end end\n"
    "图片里有一个红色的圆形和蓝色的正方形。左边的星星是什么颜色？它是绿色的。你好，世界！请描述这张图。\n"
    "def area(width, height):\n    return width * height  # 12345 + 67890\n"
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN2_VL = """\
{% set images = namespace(value=0) %}{% set clips = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' or 'image_url' in part %}\
{% set images.value = images.value + 1 %}{% if add_vision_id %}Picture {{ images.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'video' %}{% set clips.value = clips.value + 1 %}\
{% if add_vision_id %}Video {{ clips.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN3_VL = """\
{%- set images = namespace(value=0) %}
{%- macro show(content, count) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {%- if 'image' in part or 'image_url' in part or part.type == 'image' %}
                {%- if count %}{%- set images.value = images.value + 1 %}{%- endif %}
                {%- if add_vision_id %}Picture {{ images.value }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'video' in part or part.type == 'video' %}
                {%- if add_vision_id %}Video: {% endif -%}
                <|vision_start|><|video_pad|><|vision_end|>
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}{{- show(messages[0].content, false) }}{{- '<|im_end|>\\n' }}
{%- endif %}
{%- set last = namespace(query=messages|length - 1, open=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- set text = show(message.content, false) %}
    {%- set result = text.startswith('<tool_response>') and text.endswith('</tool_response>') %}
    {%- if last.open and message.role == 'user' and not result %}
        {%- set last.open = false %}
        {%- set last.query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = show(message.content, true) %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > last.query and (loop.last or reasoning) and reasoning %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

TEMPLATES = {"qwen2_vl": QWEN2_VL, "qwen3_vl": QWEN3_VL}


@cache
def tokenizer_json() -> str:
    """A tokenizer.json: 256 bytes, about 250 merges, the special tokens, the ordinary added ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ORDINARY])
    return str(tokenizer.to_str())


def token_id(text: str) -> int:
    """Id of an added token."""
    found = tokenizers.Tokenizer.from_str(tokenizer_json()).token_to_id(text)
    assert found is not None, text
    return int(found)


def write_text_files(directory: Path, template: str, *, kind: str = "jinja") -> Path:
    """Writes tokenizer.json, tokenizer_config.json and the template, in one of the three places it may stand."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>", "special": True, "__type": "AddedToken"},
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
    }
    if kind == "jinja":
        (directory / "chat_template.jinja").write_text(template)
    elif kind == "json":
        (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    else:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(tokenizer_json())
    return directory
