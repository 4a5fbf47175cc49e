"""What Qwen-VL v1's files say, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.families.config_file import SpecError
from inference_service.families.footprint import footprint
from inference_service.families.registry import load_spec
from inference_service.families.tables import module_parts, tensor_shapes
from inference_service.model_spec import DynamicNtk
from inference_service.models.vision_language import VisionLanguageModel


PUBLISHED = Path("tests/golden/configs/Qwen-VL-Chat")


def changed(tmp_path: Path, generation: dict[str, Any] | None = None, **config: Any) -> Path:
    """The published files with other values; None = the key is absent."""
    values = json.loads((PUBLISHED / "config.json").read_text())
    visual = config.pop("visual", {})
    values |= {"visual": None if visual is None else values["visual"] | visual} | config
    (tmp_path / "config.json").write_text(
        json.dumps({key: value for key, value in values.items() if value is not None})
    )
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


def test_the_released_checkpoint():
    """853 names and 19,313,870,336 bytes: the release's own index."""
    spec = load_spec(PUBLISHED)
    shapes = tensor_shapes(spec)
    assert len(shapes) == 853
    assert 2 * sum(map(math.prod, shapes.values())) == 19_313_870_336
    assert footprint(spec, "bfloat16").weight_bytes == 19_313_870_336
    assert shapes["transformer.visual.transformer.resblocks.47.mlp.c_fc.weight"] == (8192, 1664)
    with torch.device("meta"):
        model = VisionLanguageModel(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == 19_313_870_336 // 2
    parts = [(name, round(count / 1e9, 2)) for name, count in module_parts(spec)]
    assert parts == [("vision", 1.86), ("adapter", 0.08), ("language", 7.72)]


def test_settings_of_the_release():
    spec = load_spec(PUBLISHED)
    assert (spec.family, spec.is_chat, spec.checkpoint_dtype) == ("qwen_vl", True, "bfloat16")
    assert spec.eos_token_ids == (151643, 151644, 151645)
    assert (spec.vision_start_token_id, spec.vision_end_token_id) == (151857, 151858)
    assert spec.image_token_id == 151859
    assert spec.image_policy.square_side == 448
    assert spec.image_policy.num_tokens == 256
    assert spec.max_position_embeddings == 8192


def test_settings_that_the_original_need_not_be_told(tmp_path):
    told = load_spec(PUBLISHED)
    absent = dict.fromkeys(
        ("use_dynamic_ntk", "use_logn_attn", "no_bias", "rotary_pct", "scale_attn_weights")
    )
    assert load_spec(changed(tmp_path, {"chat_format": "chatml"}, **absent)) == told
    assert told.decoder.rope.ntk is not None
    assert told.decoder.logn_length == told.decoder.rope.ntk.trained_length == 2048


def test_a_base_model(tmp_path):
    spec = load_spec(changed(tmp_path, generation={"chat_format": "raw"}))
    assert not spec.is_chat
    assert spec.eos_token_ids == (151643,)


@pytest.mark.parametrize(
    ("tokens", "level"),
    [(1, 0), (2048, 0), (2049, 1), (4096, 1), (4097, 2), (8192, 2), (8193, 3), (16384, 3)],
)
def test_levels(tokens, level):
    """The original's formula: alpha = max(2^ceil(log2(T / trained) + 1) - 1, 1)."""
    ntk = DynamicNtk(trained_length=2048, max_length=16384)
    assert ntk.level(tokens) == level
    alpha = max(2 ** math.ceil(math.log2(tokens / 2048) + 1) - 1, 1)
    assert ntk.theta(level, 10000.0, 128) == pytest.approx(10000 * alpha ** (128 / 126), rel=1e-12)
    assert ntk.num_levels == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"visual": None}, "language model without vision"),
        ({"no_bias": False}, "no_bias"),
        ({"rotary_pct": 0.5}, "rotary_pct"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"kv_channels": 127}, "kv_channels"),
        ({"kv_channels": None}, "kv_channels is missing"),
        ({"intermediate_size": 22015}, "intermediate_size"),
        ({"seq_length": 1}, "seq_length"),
        ({"hidden_size": 4224}, "output_dim must be the decoder's"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"visual": {"image_size": 450}}, "multiple of patch_size"),
        ({"visual": {"heads": 15}}, "multiple of heads"),
        ({"visual": {"n_queries": 255}}, "n_queries"),
        ({"visual": {"output_dim": 4000}}, "cannot be divided among 31 heads"),
        ({"visual": {"image_start_id": 151935}}, "image_start_id"),
        ({"visual": {"image_start_id": 200}}, "image_start_id"),
        ({"torch_dtype": "int8"}, "dtype"),
    ],
)
def test_refusals(change, words, tmp_path):
    with pytest.raises(SpecError, match=words):
        load_spec(changed(tmp_path, **change))


def test_unknown_chat_format(tmp_path):
    with pytest.raises(SpecError, match="chat_format"):
        load_spec(changed(tmp_path, generation={"chat_format": "alpaca"}))


def test_unknown_keys_and_other_queries(tmp_path):
    spec = load_spec(changed(tmp_path, visual={"n_queries": 64, "novel": True}))
    assert spec.image_policy.num_tokens == 64
    assert tensor_shapes(spec)["transformer.visual.attn_pool.query"] == (64, 4096)
    assert spec.is_chat


def test_a_tower_as_wide_as_the_decoder_has_no_projection(tmp_path):
    spec = load_spec(changed(tmp_path, visual={"width": 4096, "heads": 32}))
    assert not [name for name in tensor_shapes(spec) if "kv_proj" in name]
    with torch.device("meta"):
        model = VisionLanguageModel(spec)
    assert sum(p.numel() for p in model.parameters()) == sum(c for _, c in module_parts(spec))
