"""How tiny checkpoints of families that only transformers knows are written, and what transformers makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from tests.support.qwen_text import tokenizer_json
from tests.support.tiny_qwen_vl import randomise


# Its types do not know all settings that its configurations have.
library: Any = transformers
TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def tokenizer_with(tokens: Iterable[str]) -> tokenizers.Tokenizer:
    """The small tokenizer with further special tokens."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in tokens])
    return tokenizer


def id_in(tokenizer: tokenizers.Tokenizer, text: str) -> int:
    """Id of an added token."""
    found = tokenizer.token_to_id(text)
    assert found is not None, text
    return int(found)


def write(
    directory: Path,
    model: Any,
    tokenizer: tokenizers.Tokenizer,
    image: str,
    *,
    seed: int,
    named_tokens: Mapping[str, str] | None = None,
) -> None:
    """Writes a checkpoint with random weights, all but its processor.

    Args:
        directory: Where.
        model: The model of the library; its weights are replaced.
        tokenizer: Its tokenizer.
        image: What its template writes for an image.
        seed: Of the weights.
        named_tokens: Tokens by the names that its processor has for them; None = its settings name none.
    """
    randomise(model, seed)
    ends = [id_in(tokenizer, text) for text in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(str(tokenizer.to_str()))
    (directory / "chat_template.jinja").write_text(TEMPLATE.replace("IMAGE", image))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
    }
    if named_tokens is not None:
        settings["extra_special_tokens"] = dict(named_tokens)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def reference_model(directory: Path) -> Any:
    """A checkpoint as transformers loads it."""
    auto = library.AutoModelForImageTextToText
    return auto.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def reference_ids(model: Any, inputs: Any, max_tokens: int, **options: Any) -> list[int]:
    """The greedy answer of transformers' own `generate`."""
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, **options)
    return [int(i) for i in made[0, inputs["input_ids"].shape[1] :]]
