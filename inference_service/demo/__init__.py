"""The embedded default model: where its folder lies.

Owns only the path. The generator of pictures, the network and the trainer are beside it and are
imported by nobody who serves: this module must stay free of torch, Pillow and numpy.
"""

from __future__ import annotations

from pathlib import Path


MODEL_DIR: Path = Path(__file__).parent / "model"
"""The Hugging Face folder of the demo checkpoint (config, weights, tokenizer, processor)."""
