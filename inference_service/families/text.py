"""Which tokenizer and which chat format a model has.

Owns this choice, by family.
"""

from __future__ import annotations

from pathlib import Path

from inference_service.families.glm_4v import text as glm_4v
from inference_service.families.qwen_vl import text as qwen_vl
from inference_service.model_spec import ModelSpec
from inference_service.text.chat_template import ChatTemplate
from inference_service.text.prompt import ChatFormat
from inference_service.text.templated_chat import FrameTimes, TemplatedChat
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer


def load_text(
    model_dir: Path, spec: ModelSpec, *, history_window: int | None = None
) -> tuple[Tokenizer, ChatFormat]:
    """Reads the text files of a model.

    Args:
        model_dir: Where they are.
        spec: The model.
        history_window: Tokens of history beyond which old turns are left out; only Qwen-VL (2023) has it.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is malformed or does not fit the model, or the family has no such window.
    """
    if spec.family == "qwen_vl":
        return _qwen_vl(model_dir, spec, history_window)
    if history_window is not None:
        raise ValueError("--history-window is for Qwen-VL and Qwen-VL-Chat (2023) only")
    if spec.family == "glm_4v":
        return _glm_4v(model_dir, spec)
    tokenizer = JsonTokenizer.from_dir(model_dir)
    template = ChatTemplate.from_dir(model_dir)
    times = FrameTimes.of(tokenizer, spec)
    return tokenizer, TemplatedChat(
        tokenizer, template, placeholder=spec.image_token_id, frame_times=times
    )


def _qwen_vl(
    model_dir: Path, spec: ModelSpec, history_window: int | None
) -> tuple[Tokenizer, ChatFormat]:
    if not (model_dir / qwen_vl.VOCABULARY).is_file():
        raise ValueError(f"{model_dir} has no {qwen_vl.VOCABULARY}, the vocabulary of the release")
    tokenizer = qwen_vl.load_tokenizer(model_dir)
    if tokenizer.special_tokens["<imgpad>"] != spec.image_token_id:
        raise ValueError(f"{qwen_vl.VOCABULARY} does not fit image_start_id of config.json")
    if not spec.is_chat:
        if history_window is not None:
            raise ValueError("--history-window: this is a base model, whose prompts have no turns")
        return tokenizer, qwen_vl.QwenVLBase(tokenizer)
    image_tokens = spec.image_policy.num_tokens or 0
    return tokenizer, qwen_vl.QwenVLChat(
        tokenizer, image_tokens=image_tokens, history_window=history_window
    )


def _glm_4v(model_dir: Path, spec: ModelSpec) -> tuple[Tokenizer, ChatFormat]:
    tokenizer = glm_4v.load_tokenizer(model_dir)
    ids = [tokenizer.special_tokens[token] for token in glm_4v.IMAGE]
    if ids != [spec.vision_start_token_id, spec.image_token_id, spec.vision_end_token_id]:
        raise ValueError(f"{glm_4v.VOCABULARY} does not fit boi_token_id of config.json")
    return tokenizer, glm_4v.GlmChat(tokenizer)
