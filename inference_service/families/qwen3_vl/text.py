"""Text processing of Qwen3-VL: tokenizer.json and the Jinja template of the checkpoint."""

from __future__ import annotations

from inference_service.families.qwen_common.text import load_text


__all__ = ["load_text"]
