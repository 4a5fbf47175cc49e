"""Every published size of every family: its configuration loads, and its tensors are those of the published files."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from inference_service.families.config_file import SpecError
from inference_service.families.qwen2_5_vl.spec import Qwen25VisionSpec
from inference_service.families.registry import load_spec
from inference_service.families.tables import kv_bytes_per_token, module_parts, tensor_shapes
from inference_service.model_spec import VideoPolicy
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


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_same_in_the_spelling_of_transformers_5(name, tmp_path):
    """Qwen2-VL and Qwen2.5-VL were published with the language model's settings at top level."""
    AutoConfig.from_pretrained(CONFIGS / name).save_pretrained(tmp_path)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    for file in (CONFIGS / name).glob("*preprocessor_config.json"):
        shutil.copy(file, tmp_path)
    assert load_spec(tmp_path) == load_spec(CONFIGS / name)


def test_what_distinguishes_the_families():
    qwen2, qwen25, qwen3 = (load_spec(CONFIGS / name) for name in sorted(SMALLEST))
    assert qwen2.decoder.rope == qwen25.decoder.rope
    assert qwen2.decoder.rope.sections == (16, 24, 24)
    assert qwen3.decoder.rope.interleaved
    assert not qwen2.decoder.rope.interleaved
    assert (qwen2.decoder.qkv_bias, qwen3.decoder.qkv_bias) == (True, False)
    assert isinstance(qwen25.vision, Qwen25VisionSpec)
    assert qwen25.vision.window_size == 112
    assert qwen25.vision.full_attention_layers == (7, 15, 23, 31)
    assert [spec.decoder.deepstack_levels for spec in (qwen2, qwen25, qwen3)] == [0, 0, 3]
    # Published without settings for videos: as in transformers, the limits of images hold for each frame.
    assert qwen2.video == VideoPolicy(
        min_pixels=3136, max_pixels=12845056, total_pixels=12845056, tokens_per_second=None
    )
    assert qwen25.video == replace(qwen2.video, tokens_per_second=2.0)
    assert qwen3.video == VideoPolicy(min_pixels=4096, max_pixels=25165824, timestamps=True)
    assert [spec.eos_token_ids for spec in (qwen2, qwen25, qwen3)] == [(151645,)] * 3


def test_limits_of_videos_from_a_file_of_their_own(tmp_path):
    shutil.copytree(CONFIGS / "Qwen3-VL-2B-Instruct", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "video_preprocessor_config.json"
    file.write_text(json.dumps({"size": {"shortest_edge": 1000, "longest_edge": 2000}}))
    video = load_spec(tmp_path).video
    assert video is not None
    assert (video.min_pixels, video.max_pixels) == (1000, 2000)
    file.write_text(json.dumps({"size": {"shortest_edge": 3000, "longest_edge": 2000}}))
    with pytest.raises(
        SpecError, match=r"video_preprocessor_config\.json: the minimum area .* is 3000, above"
    ):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("Qwen2-VL-2B-Instruct", "rope_scaling.mrope_section", [16, 24], "sum 64"),
        ("Qwen2-VL-2B-Instruct", "vision_config.hidden_act", "gelu", "only 'quick_gelu'"),
        ("Qwen2-VL-2B-Instruct", "vision_config.mlp_ratio", 4.0001, "must be an integer"),
        ("Qwen2-VL-2B-Instruct", "vision_config.in_chans", 1, "only 3 is supported"),
        ("Qwen2-VL-2B-Instruct", "vision_config.hidden_size", 1537, "decoder's hidden_size"),
        ("Qwen2.5-VL-3B-Instruct", "vision_config.hidden_act", "gelu", "only 'silu'"),
        ("Qwen2.5-VL-3B-Instruct", "vision_config.window_size", 27, "must be at least patch_size"),
        (
            "Qwen2.5-VL-3B-Instruct",
            "vision_config.fullatt_block_indexes",
            [32],
            "must be less than depth",
        ),
        ("Qwen2.5-VL-3B-Instruct", "vision_config.tokens_per_second", 0, "positive number"),
        ("Qwen2.5-VL-3B-Instruct", "vision_config.num_heads", 3, "multiple of 4"),
    ],
)
def test_refusals_of_the_older_families(name, path, value, words, tmp_path):
    shutil.copytree(CONFIGS / name, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    *sections, key = path.split(".")
    section = config
    for step in sections:
        section = section[step]
    section[key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=words):
        load_spec(tmp_path)
