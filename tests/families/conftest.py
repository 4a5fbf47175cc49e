"""The tiny checkpoints and the small tokenizers, shared with the tests of models and text."""

from __future__ import annotations

from tests.models.conftest import _one_thread, checkpoint, model, reference
from tests.text.conftest import text_dir, tokenizer


__all__ = ["_one_thread", "checkpoint", "model", "reference", "text_dir", "tokenizer"]
