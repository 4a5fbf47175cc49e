"""Name tables equal what transformers writes, tiny and in published size."""

from __future__ import annotations

import pytest
from safetensors import safe_open
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from inference_service.families.registry import family_of, load_spec
from inference_service.families.tables import kv_bytes_per_token, module_parts, tensor_shapes
from tests.support.published_configs import published_files, write_files
from tests.support.tiny_qwen_vl import build_checkpoint


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": True},
        {"attention_bias": True},
        {"deepstack": ()},
        {"family": "qwen2_vl"},
        {"family": "qwen2_vl", "tied": True},
        {"family": "qwen2_5_vl"},
        {"family": "qwen2_5_vl", "tied": True},
    ],
    ids=str,
)
def test_names_and_shapes_equal_the_checkpoint(settings, tmp_path):
    build_checkpoint(tmp_path, **settings)
    spec = load_spec(tmp_path)
    current_name = family_of(spec).current_name
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        stored = {
            current_name(name): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118 - no mapping, only `keys`
        }
    assert tensor_shapes(spec) == stored


def test_published_size(tmp_path):
    """Qwen3-VL-4B: every name, shape and count equals that of transformers, without its weights."""
    spec = load_spec(write_files(tmp_path, published_files()))
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**published_files()["config.json"]))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert tensor_shapes(spec) == theirs

    counts = dict(module_parts(spec))
    assert sum(counts.values()) == model.num_parameters() == 4_437_815_808
    assert counts["language"] == sum(p.numel() for p in model.model.language_model.parameters())
    assert kv_bytes_per_token(spec, 2) == 144 * 1024
