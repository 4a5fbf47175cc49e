"""Every published size of every family: its configuration loads, and its tensors are those of the published files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from inference_service.models.spec import load_spec
from inference_service.models.tables import kv_bytes_per_token, module_parts, tensor_shapes
from inference_service.models.vision_language import VisionLanguageModel


CONFIGS = Path("tests/golden/configs")
# Parameters as the publishers' own indexes have them (two bytes each), and KiB of keys and values of one token.
PUBLISHED = {
    "Qwen2-VL-2B-Instruct": (2_208_985_600, 28),
    "Qwen2-VL-7B-Instruct": (8_291_375_616, 56),
    "Qwen2-VL-72B-Instruct": (73_405_560_320, 320),
    "Qwen2.5-VL-3B-Instruct": (3_754_622_976, 36),
    "Qwen2.5-VL-7B-Instruct": (8_292_166_656, 56),
    "Qwen2.5-VL-32B-Instruct": (33_452_718_336, 256),
    "Qwen2.5-VL-72B-Instruct": (73_410_777_344, 320),
    "Qwen3-VL-2B-Instruct": (2_127_532_032, 112),
    "Qwen3-VL-4B-Instruct": (4_437_815_808, 144),
    "Qwen3-VL-8B-Instruct": (8_767_123_696, 144),
    "Qwen3-VL-32B-Instruct": (33_357_390_064, 256),
}
SMALLEST = {"Qwen2-VL-2B-Instruct", "Qwen2.5-VL-3B-Instruct", "Qwen3-VL-2B-Instruct"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes(name):
    parameters, kib = PUBLISHED[name]
    spec = load_spec(CONFIGS / name)
    assert sum(count for _, count in module_parts(spec)) == parameters
    assert kv_bytes_per_token(spec, 2) == kib * 1024
    assert spec.checkpoint_dtype == "bfloat16"
    assert spec.image_policy.pixel_step == (32 if spec.family == "qwen3_vl" else 28)


@pytest.mark.parametrize(
    "name",
    [
        name if name in SMALLEST else pytest.param(name, marks=pytest.mark.full)
        for name in PUBLISHED
    ],
)
def test_names_and_shapes_equal_transformers(name):
    """Without weights: modules on `meta`, ours and theirs."""
    spec = load_spec(CONFIGS / name)
    with torch.device("meta"):
        theirs = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(CONFIGS / name))
        ours = VisionLanguageModel(spec)
    assert tensor_shapes(spec) == {
        name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()
    }
    assert sum(parameter.numel() for parameter in ours.parameters()) == PUBLISHED[name][0]
