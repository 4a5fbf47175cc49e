"""Tiny random checkpoints of families that nobody here thought of, each with another kind of processor.

gemma3: a token for the beginning of an image, token types, windows; idefics3: images in pieces; internvl: the part of
the processor for videos needs torchvision; mistral3: the whole processor does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
import json
from pathlib import Path
from typing import Any

import tokenizers

from tests.support.library_checkpoints import id_in, library, tokenizer_with, write


VOCAB_SIZE = 700
_TOKENS = (
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    *("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
    *("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
)


@dataclass(frozen=True)
class Stranger:
    """How a family's checkpoint is made.

    Attributes:
        model: Makes the model.
        image: What its template writes for an image.
        images: Makes its image processor.
        processor: processor_config.json.
        tokens: Named tokens of its tokenizer.
    """

    model: Callable[[], Any]
    image: str
    images: Callable[[], Any]
    processor: Mapping[str, Any]
    tokens: Mapping[str, str] = field(default_factory=dict)


@cache
def _tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizer_with(_TOKENS)
    assert tokenizer.get_vocab_size() <= VOCAB_SIZE
    return tokenizer


def _id(text: str) -> int:
    return id_in(_tokenizer(), text)


def build(directory: Path, name: str, seed: int = 5) -> Path:
    """Writes a checkpoint of a family, float32; returns the directory."""
    one = STRANGERS[name]
    write(directory, one.model(), _tokenizer(), one.image, seed=seed, named_tokens=one.tokens)
    one.images().save_pretrained(directory)
    (directory / "processor_config.json").write_text(json.dumps(one.processor))
    return directory


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "eos_token_id": _id("<|im_end|>"),
        "pad_token_id": _id("<|endoftext|>"),
        "bos_token_id": _id("<|endoftext|>"),
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
        **more,
    }


_PLAIN: Mapping[str, Any] = {"tie_word_embeddings": False, "dtype": "float32"}


def _gemma3() -> Any:
    layers = ["sliding_attention", "full_attention"]
    config = library.Gemma3Config(
        text_config=_text(sliding_window=24, layer_types=layers, query_pre_attn_scalar=16),
        vision_config=_vision(model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=_id("<start_of_image>"),
        eoi_token_index=_id("<end_of_image>"),
        image_token_index=_id("<image_soft_token>"),
        **_PLAIN,
    )
    return library.Gemma3ForConditionalGeneration(config)


def _idefics3() -> Any:
    config = library.Idefics3Config(
        text_config=_text(model_type="llama"),
        vision_config=_vision(),
        scale_factor=2,
        image_token_id=_id("<image>"),
        pad_token_id=_id("<|endoftext|>"),
        **_PLAIN,
    )
    return library.Idefics3ForConditionalGeneration(config)


def _mistral3() -> Any:
    config = library.Mistral3Config(
        text_config=_text(model_type="mistral", sliding_window=None),
        vision_config=_vision(model_type="pixtral", image_size=64, head_dim=12),
        spatial_merge_size=2,
        image_token_index=_id("[IMG]"),
        **_PLAIN,
    )
    return library.Mistral3ForConditionalGeneration(config)


def _internvl() -> Any:
    config = library.InternVLConfig(
        text_config=_text(model_type="qwen2"),
        vision_config=_vision(image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=_id("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        **_PLAIN,
    )
    return library.InternVLForConditionalGeneration(config)


STRANGERS: Mapping[str, Stranger] = {
    "gemma3": Stranger(
        _gemma3,
        "<start_of_image>",
        lambda: library.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    ),
    "idefics3": Stranger(
        _idefics3,
        "<image>",
        lambda: library.Idefics3ImageProcessorPil(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        {"processor_class": "Idefics3Processor", "image_seq_len": 4},
    ),
    "mistral3": Stranger(
        _mistral3,
        "[IMG]",
        lambda: library.PixtralImageProcessorPil(
            size={"longest_edge": 64}, patch_size={"height": 16, "width": 16}
        ),
        {"processor_class": "PixtralProcessor", "patch_size": 8, "spatial_merge_size": 2},
    ),
    "internvl": Stranger(
        _internvl,
        "<IMG_CONTEXT>",
        lambda: library.GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, min_patches=1, max_patches=4
        ),
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
}
