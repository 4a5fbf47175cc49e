"""Text processing of the families whose checkpoints contain tokenizer.json and a Jinja template."""

from __future__ import annotations

from pathlib import Path

from inference_service.families.copied_files import missing_files
from inference_service.families.family import TextOptions
from inference_service.families.qwen_common.frame_times import FrameTimes
from inference_service.model_spec import ModelSpec, ToolNotation
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.model_files import find_chat_template, has_tokenizer
from inference_service.text.prompt import ChatFormat
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer


def load_text(
    model_dir: Path,
    spec: ModelSpec,
    options: TextOptions,
    *,
    tools: ToolNotation = ToolNotation.HERMES,
) -> tuple[Tokenizer, ChatFormat]:
    """See `Family.load_text`; `tools` is how the family writes tool calls."""
    del options
    if not has_tokenizer(model_dir) or find_chat_template(model_dir) is None:
        raise ValueError(missing_files(model_dir, spec.family))
    tokenizer = JsonTokenizer.from_dir(model_dir)
    template = JinjaTemplate.from_dir(model_dir)
    times = FrameTimes.of(tokenizer, spec)
    chat = JinjaChat(
        tokenizer,
        template,
        placeholder=spec.image_token_id,
        video_placeholder=None if spec.video is None else spec.video_token_id,
        write_videos=times.write if times else None,
        tools=tools,
    )
    chat.check()
    return tokenizer, chat
