"""Configuration files become specs, and what cannot be served is refused in words that say why."""

from __future__ import annotations

import subprocess
import sys

import pytest

from inference_service.families.config_file import SpecError
from inference_service.families.qwen3_vl.spec import Qwen3VisionSpec
from inference_service.families.registry import FAMILIES, load_spec
from inference_service.model_spec import RopeSpec
from tests.support.published_configs import published_files, write_files
from tests.support.tiny_qwen_vl import EOS_TOKENS, STEP, image_processor


def test_published_spelling(tmp_path):
    spec = load_spec(write_files(tmp_path, published_files()))
    assert spec.family == "qwen3_vl"
    assert spec.checkpoint_dtype == "bfloat16"
    assert spec.eos_token_ids == (151645, 151643)
    assert spec.max_position_embeddings == 262144
    assert spec.decoder.rope == RopeSpec(theta=5e6, sections=(24, 20, 20), interleaved=True)
    assert spec.decoder.tie_word_embeddings
    assert spec.decoder.qk_norm
    assert not spec.decoder.qkv_bias
    assert isinstance(spec.vision, Qwen3VisionSpec)
    assert spec.vision.position_table_side == 48
    assert spec.vision.deepstack_layers == (5, 11, 17)
    assert spec.image_policy.pixel_step == 32
    assert (spec.image_policy.min_pixels, spec.image_policy.max_pixels) == (65536, 16777216)


def test_spelling_of_transformers_5(checkpoint):
    spec = load_spec(checkpoint)
    assert spec.eos_token_ids == EOS_TOKENS
    assert spec.decoder.rope == RopeSpec(theta=100.0, sections=(4, 2, 2), interleaved=True)
    assert spec.checkpoint_dtype == "float32"
    policy, processor = spec.image_policy, image_processor()
    assert policy.mean == tuple(processor.image_mean)
    assert policy.std == tuple(processor.image_std)
    assert policy.min_pixels == processor.size["shortest_edge"]
    assert policy.max_pixels == processor.size["longest_edge"]
    assert policy.pixel_step == STEP


def test_end_tokens_from_config_where_there_is_no_generation_config(tmp_path):
    files = published_files()
    del files["generation_config.json"]
    assert load_spec(write_files(tmp_path, files)).eos_token_ids == (151645,)


@pytest.mark.parametrize(("key", "dtype"), [("torch_dtype", "float16"), ("absent", "float32")])
def test_dtype_by_its_old_name_or_not_at_all(key, dtype, tmp_path):
    files = published_files()
    del files["config.json"]["text_config"]["dtype"]
    files["config.json"][key] = dtype
    assert load_spec(write_files(tmp_path, files)).checkpoint_dtype == dtype


def test_image_processor_inside_its_processor(tmp_path):
    files = published_files()
    files["processor_config.json"] = {"image_processor": files.pop("preprocessor_config.json")}
    assert load_spec(write_files(tmp_path, files)).image_policy.pixel_step == 32


def test_old_names_of_pixel_limits(tmp_path):
    files = published_files()
    del files["preprocessor_config.json"]["size"]
    files["preprocessor_config.json"] |= {"min_pixels": 3136, "max_pixels": 12845056}
    policy = load_spec(write_files(tmp_path, files)).image_policy
    assert (policy.min_pixels, policy.max_pixels) == (3136, 12845056)


@pytest.mark.parametrize(
    ("file", "path", "value", "words"),
    [
        ("config.json", "model_type", "qwen3_vl_moe", "mixture-of-experts"),
        ("config.json", "model_type", "llama", "'llama' is not supported; supported: .*qwen3_vl"),
        ("config.json", "model_type", None, "model_type is missing"),
        ("config.json", "text_config", None, "text_config is missing"),
        ("config.json", "text_config", [], "must be an object"),
        ("config.json", "quantization_config", {"quant_method": "fp8"}, "quantised"),
        ("config.json", "image_token_id", 151936, "must be less than vocab_size 151936"),
        ("config.json", "image_token_id", "x", "image_token_id must be an integer"),
        ("config.json", "tie_word_embeddings", 1, "must be true or false"),
        ("config.json", "text_config.hidden_act", "gelu", "only 'silu' is supported"),
        ("config.json", "text_config.hidden_size", 0, "hidden_size must be an integer >= 1"),
        ("config.json", "text_config.num_key_value_heads", 5, "cannot share 5 key heads"),
        ("config.json", "text_config.rms_norm_eps", -1, "must be a positive number"),
        ("config.json", "text_config.rope_scaling.rope_type", "yarn", "'yarn' is not supported"),
        ("config.json", "text_config.rope_scaling.mrope_section", [24, 20], "sum 64"),
        ("config.json", "text_config.rope_scaling.mrope_section", [24, 20, 21], "sum 64"),
        ("config.json", "text_config.rope_theta", 0, "rope_theta must be a positive number"),
        ("config.json", "text_config.dtype", "float8", "dtype 'float8' is not supported"),
        ("config.json", "vision_config.num_position_embeddings", 2300, "must be a square"),
        ("config.json", "vision_config.out_hidden_size", 2561, "decoder's hidden_size"),
        (
            "config.json",
            "vision_config.deepstack_visual_indexes",
            [5, 24],
            "must be ascending and less than depth",
        ),
        (
            "config.json",
            "vision_config.deepstack_visual_indexes",
            [11, 5],
            "must be ascending and less than depth",
        ),
        ("config.json", "vision_config.num_heads", 3, "multiple of 4"),
        ("config.json", "vision_config.rope_parameters", {"rope_theta": 7.0}, "10000.0"),
        ("preprocessor_config.json", "patch_size", 14, "only 16 is supported"),
        ("preprocessor_config.json", "resample", 2, "only 3 is supported"),
        ("preprocessor_config.json", "do_normalize", False, "only True is supported"),
        ("preprocessor_config.json", "image_mean", [0.5, 0.5], "three numbers"),
        ("preprocessor_config.json", "image_std", [0.5, 0, 0.5], "image_std must not contain 0"),
        (
            "preprocessor_config.json",
            "size",
            {"shortest_edge": 9, "longest_edge": 4},
            "is 9, above the maximum",
        ),
        ("preprocessor_config.json", "size", {"shortest_edge": 9}, "longest_edge is missing"),
        ("generation_config.json", "eos_token_id", "</s>", "eos_token_id must be integers"),
        ("config.json", "text_config.num_hidden_layers", 10**9, "must be an integer <= 1024"),
        ("config.json", "vision_config.depth", 10**9, "must be an integer <= 1024"),
        ("config.json", "text_config.vocab_size", 10**30, "must be an integer <= 2147483647"),
    ],
)
def test_refusals(file, path, value, words, tmp_path):
    files = published_files()
    *sections, key = path.split(".")
    section = files[file]
    for name in sections:
        section = section[name]
    if value is None:
        del section[key]
    else:
        section[key] = value
    with pytest.raises(SpecError, match=words) as error:
        load_spec(write_files(tmp_path, files))
    assert str(error.value).startswith((file, "config.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "config.json is not valid JSON"),
        (b"\xff\xfe", "config.json is not valid JSON"),
        (b"[]", "config.json must contain a JSON object"),
        (b"[" * 100_000, "config.json is not valid JSON"),
        (None, "config.json cannot be read"),
    ],
)
def test_broken_files(content, words, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SpecError, match=words):
        load_spec(tmp_path)


def test_registry_names_agree():
    assert all(name == family.name for name, family in FAMILIES.items())
    supported = {family.model_type for family in FAMILIES.values()}
    refused = [key for family in FAMILIES.values() for key in family.refused_relatives]
    assert len(refused) == len(set(refused))
    assert not supported & set(refused)


def test_what_the_front_reads_loads_no_torch():
    code = (
        "import sys, inference_service.families.tables, inference_service.families.registry;"
        "assert not {'torch', 'numpy', 'safetensors'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
