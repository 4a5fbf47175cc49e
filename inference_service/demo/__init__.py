"""The embedded default model: its files (`model/`) and its card (`README.md`), created by `demo_training`."""

from __future__ import annotations

from pathlib import Path


MODEL_DIR: Path = Path(__file__).parent / "model"
"""The Hugging Face folder of the demo checkpoint (config, weights, tokenizer, processor)."""
