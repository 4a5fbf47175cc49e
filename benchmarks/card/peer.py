"""The same shape in transformers' own generate, with the same random kind of weights, on the same card."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.card.setting import Setting


def measure(setting: Setting) -> dict[str, Any]:
    """Milliseconds per token of `generate` with SDPA, one sequence, greedy."""
    name, model_dir = next(iter(setting.shapes.items()))
    prompt, tokens = (32, 4) if setting.tiny else (1024, 32)
    config = AutoConfig.from_pretrained(model_dir)
    with torch.device(setting.device):
        model = AutoModelForImageTextToText.from_config(
            config, dtype=setting.dtype, attn_implementation="sdpa"
        ).eval()
    ids = torch.randint(0, 256, (1, prompt), device=setting.device)

    def generate(count: int) -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )

    with torch.inference_mode():
        one = setting.seconds(lambda: generate(1), repeats=3)
        many = setting.seconds(lambda: generate(1 + tokens), repeats=3)
    return {"model": name, "prompt": prompt, "step_ms": (many - one) / tokens * 1e3}
