"""What GLM-4V-9B's files say: settings, published size, refusals, positions of an image."""

from __future__ import annotations

from copy import deepcopy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_service.engine_protocol.messages import ImageSpan
from inference_service.families.config_file import SpecError
from inference_service.families.glm_4v.positions import one_for_all_patches
from inference_service.families.registry import load_spec
from inference_service.families.tables import kv_bytes_per_token, module_parts, tensor_shapes
from inference_service.kernels.rope import apply_rope
from inference_service.model_spec import ModelSpec
from inference_service.models.vision_language import VisionLanguageModel
from tests.support.glm_4v import GOLDEN


TINY: dict[str, Any] = json.loads((GOLDEN / "config" / "config.json").read_text())
RELEASED = TINY | {
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "num_layers": 40,
    "seq_length": 8192,
    "torch_dtype": "bfloat16",
    "vision_config": TINY["vision_config"]
    | {
        "hidden_size": 1792,
        "intermediate_size": 15360,
        "num_hidden_layers": 63,
        "num_heads": 16,
        "num_positions": 6401,
        "image_size": 1120,
    },
}


def spec_of(tmp_path: Path, config: dict[str, Any]) -> ModelSpec:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return load_spec(tmp_path)


def test_names_and_shapes_equal_the_recipe():
    recipe = json.loads((GOLDEN / "config" / "tensors.json").read_text())
    stored = {entry["name"]: tuple(entry["shape"]) for entry in recipe["tensors"]}
    assert tensor_shapes(load_spec(GOLDEN / "config")) == stored


def test_released_size(tmp_path):
    """13.9 billion parameters, as the model card has it; without weights."""
    spec = spec_of(tmp_path, RELEASED)
    with torch.device("meta"):
        model = VisionLanguageModel(spec).to(torch.bfloat16)
    counts = dict(module_parts(spec))
    assert counts == {"vision": 4_291_915_264, "adapter": 214_454_272, "language": 9_399_951_360}
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert model.weight_bytes == 27_812_641_792
    assert len(tensor_shapes(spec)) == 1053
    assert kv_bytes_per_token(spec, 2) == 40 * 1024
    assert spec.image_policy.num_tokens == 1602
    assert spec.image_policy.square_side == 1120
    assert (spec.max_position_embeddings, spec.checkpoint_dtype) == (8192, "bfloat16")


def test_settings(tmp_path):
    spec = spec_of(tmp_path, TINY | {"rope_ratio": 500})
    decoder = spec.decoder
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim) == (4, 2, 32)
    assert (decoder.rope.dim, decoder.rope.theta) == (16, 5_000_000.0)
    assert spec.eos_token_ids == (151329, 151336, 151338)
    assert spec.image_token_id == 151329
    assert not spec.image_policy.exif_transpose
    assert not spec.image_policy.white_background
    assert spec.image_policy.max_images == 1


def changed(config: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy = deepcopy(config)
    *sections, key = path.split(".")
    target = copy
    for section in sections:
        target = target[section]
    if value is None:
        del target[key]
    else:
        target[key] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision_config", None, "without vision"),
        ("add_bias_linear", True, "add_bias_linear"),
        ("rmsnorm", False, "rmsnorm"),
        ("original_rope", False, "original_rope"),
        ("tie_word_embeddings", True, "tie_word_embeddings"),
        ("apply_residual_connection_post_layernorm", True, "residual"),
        ("multi_query_group_num", 3, "cannot share"),
        ("kv_channels", 6, "kv_channels"),
        ("eoi_token_id", 151552, "vocabulary"),
        ("boi_token_id", 3, "vocabulary"),
        ("quantization_config", {}, "quantised"),
        ("vision_config.num_positions", 144, "num_positions"),
        ("vision_config.image_size", 182, "image_size"),
        ("vision_config.num_heads", 5, "num_heads"),
        ("vision_config.hidden_act", "silu", "hidden_act"),
        ("vision_config.scaling_factor", 0, "scaling_factor"),
    ],
)
def test_refusals_say_why(tmp_path, path, value, message):
    with pytest.raises(SpecError, match=message):
        spec_of(tmp_path, changed(TINY, path, value))


def test_positions_of_an_image():
    span = ImageSpan(
        key=b"", start=2, num_tokens=6, grid=(1, 4, 4), height=56, width=56, pixel_offset=0
    )
    positions, delta = one_for_all_patches(10, [span], 1)
    assert positions.tolist() == [[0, 1, 2, 3, 3, 3, 3, 4, 5, 6]] * 3
    assert delta == 7 - 10
    assert positions.dtype == np.int64


def test_rope_turns_neighbours_of_the_first_half():
    x = torch.arange(8.0).view(1, 1, 8)
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    turned = apply_rope(x, cos, sin, adjacent_pairs=True)
    assert turned.flatten().tolist() == [-1, 0, 2, 3, 4, 5, 6, 7]
    halves = apply_rope(x, cos, sin)
    assert halves.flatten().tolist() == [-2, 1, 0, 3, 4, 5, 6, 7]
