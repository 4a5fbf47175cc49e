"""Tiny random checkpoints of families that only transformers knows, with processors that need Pillow alone.

`CHOSEN` is the family that nobody chose: `random.Random(0).choice` of the architectures of transformers 5.23 whose
image processor works without torchvision, in alphabetical order.
"""

from __future__ import annotations

from functools import cache
import json
from pathlib import Path
from typing import Any

import tokenizers

from tests.support.library_checkpoints import id_in, library, tokenizer_with, write
from tests.support.tiny_qwen_vl import image_processor


CHOSEN = "llava_next"
FAMILIES = ("qwen3_5", "qwen3_vl_moe", "glm4v", CHOSEN)
VOCAB_SIZE = 600
_EXTRA = (
    "<image>",
    "<|image|>",
    "<|video|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
_IMAGES = {
    "qwen3_5": "<|vision_start|><|image_pad|><|vision_end|>",
    "qwen3_vl_moe": "<|vision_start|><|image_pad|><|vision_end|>",
    "glm4v": "<|begin_of_image|><|image|><|end_of_image|>",
    CHOSEN: "<image>\n",
}


@cache
def _tokenizer() -> tokenizers.Tokenizer:
    return tokenizer_with(_EXTRA)


def token_id(text: str) -> int:
    """Id of an added token."""
    return id_in(_tokenizer(), text)


def build(directory: Path, family: str, seed: int = 3) -> Path:
    """Writes a checkpoint of a family as transformers does, float32; returns the directory."""
    config, model_class = _CONFIGS[family]()
    write(directory, model_class(config), _tokenizer(), _IMAGES[family], seed=seed)
    _save_image_processor(directory, family)
    return directory


def _save_image_processor(directory: Path, family: str) -> None:
    if family == CHOSEN:
        processor = library.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        )
        processor.save_pretrained(directory)
        settings = {
            "processor_class": "LlavaNextProcessor",
            "image_token": "<image>",
            "patch_size": 8,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        }
        (directory / "processor_config.json").write_text(json.dumps(settings))
        return
    if family == "glm4v":
        library.Glm4vImageProcessorPil(
            patch_size=8,
            merge_size=2,
            temporal_patch_size=2,
            size={"shortest_edge": 4 * 256, "longest_edge": 100 * 256},
        ).save_pretrained(directory)
        return
    image_processor().save_pretrained(directory)


def _text(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 3,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        **more,
    }


def _qwen_ids() -> dict[str, Any]:
    return {
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def _rope(**more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 100.0, **more}


def _qwen3_5() -> tuple[Any, Any]:
    text = _text(
        num_hidden_layers=4,  # three with linear attention, one with full attention
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=_rope(
            partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True
        ),
    )
    vision = _vision(num_position_embeddings=25)
    config = library.Qwen3_5Config(text_config=text, vision_config=vision, **_qwen_ids())
    return config, library.Qwen3_5ForConditionalGeneration


def _qwen3_vl_moe() -> tuple[Any, Any]:
    text = _text(
        num_hidden_layers=3,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        rope_parameters=_rope(mrope_section=[4, 2, 2], mrope_interleaved=True),
    )
    vision = _vision(num_position_embeddings=25, deepstack_visual_indexes=[0])
    config = library.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_qwen_ids())
    return config, library.Qwen3VLMoeForConditionalGeneration


def _glm4v() -> tuple[Any, Any]:
    text = _text(
        num_hidden_layers=3,
        rope_parameters=_rope(partial_rotary_factor=1.0, mrope_section=[4, 2, 2]),
    )
    vision = _vision(image_size=64, hidden_size=64, num_heads=4)
    ids = {
        "image_token_id": token_id("<|image|>"),
        "video_token_id": token_id("<|video|>"),
        "image_start_token_id": token_id("<|begin_of_image|>"),
        "image_end_token_id": token_id("<|end_of_image|>"),
        "video_start_token_id": token_id("<|begin_of_video|>"),
        "video_end_token_id": token_id("<|end_of_video|>"),
    }
    config = library.Glm4vConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, dtype="float32", **ids
    )
    return config, library.Glm4vForConditionalGeneration


def _llava_next() -> tuple[Any, Any]:
    text = _text(num_hidden_layers=3, rope_parameters=_rope(), model_type="llama")
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 48,
        "intermediate_size": 80,
        "projection_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    config = library.LlavaNextConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id("<image>"),
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
        image_seq_length=16,
        tie_word_embeddings=False,
        dtype="float32",
    )
    return config, library.LlavaNextForConditionalGeneration


_CONFIGS = {
    "qwen3_5": _qwen3_5,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "glm4v": _glm4v,
    CHOSEN: _llava_next,
}
