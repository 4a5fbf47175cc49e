"""The same model, saved by several versions of transformers, is the same model; limits of areas are read alike."""

from __future__ import annotations

import json
from pathlib import Path
import shutil
from typing import Any

import pytest
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)
from transformers.video_processing_utils import BaseVideoProcessor

from inference_service.families.config_file import SpecError
from inference_service.families.qwen2_5_vl import spec as qwen2_5_vl
from inference_service.families.qwen2_vl import spec as qwen2_vl
from inference_service.families.qwen3_vl import spec as qwen3_vl
from inference_service.families.qwen_common.config import TOKEN_IDS
from inference_service.families.qwen_common.decoder import QWEN2_TEXT
from inference_service.families.registry import load_spec
from inference_service.model_spec import ModelSpec


CONFIGS = Path("tests/golden/configs")
RECORDS = {
    file.stem: json.loads(file.read_text()) for file in Path("tests/golden/saved_by").glob("*.json")
}
NEWEST = RECORDS["5.23.0"]
SAVED = [
    (version, name)
    for version, record in RECORDS.items()
    for name, config in record["config.json"].items()
    if config is not None
]
SMALL = {"images": "Qwen2-VL-2B-Instruct", "videos of qwen2": "Qwen2-VL-2B-Instruct"}
SMALL |= {"videos of qwen3": "Qwen3-VL-2B-Instruct"}


def folder_of(name: str, target: Path, config: dict[str, Any] | None = None) -> Path:
    """A copy of a published configuration, with another config.json."""
    shutil.copytree(CONFIGS / name, target, dirs_exist_ok=True)
    if config is not None:
        (target / "config.json").write_text(json.dumps(config))
    return target


def test_every_family_is_recorded_from_the_version_that_first_knew_it() -> None:
    assert {version for version, name in SAVED if name.startswith("Qwen2-")} == set(RECORDS)
    assert {version for version, name in SAVED if name.startswith("Qwen3-")} == {"4.57.1", "5.23.0"}
    short = RECORDS["4.49.0"]["config.json"]["Qwen2-VL-7B-Instruct"]["vision_config"]
    assert not {"embed_dim", "depth", "patch_size"} & set(short)  # the defaults of its class


@pytest.mark.parametrize(("version", "name"), SAVED)
def test_a_configuration_saved_again_is_the_published_model(
    version: str, name: str, tmp_path: Path
) -> None:
    config = RECORDS[version]["config.json"][name]
    assert load_spec(folder_of(name, tmp_path, config)) == load_spec(CONFIGS / name)


@pytest.mark.parametrize(
    ("config_class", "vision", "text"),
    [
        (Qwen2VLConfig, qwen2_vl.VISION, QWEN2_TEXT),
        (Qwen2_5_VLConfig, qwen2_5_vl.VISION, QWEN2_TEXT),
        (Qwen3VLConfig, qwen3_vl.VISION, qwen3_vl.TEXT),
    ],
)
def test_defaults_are_those_of_the_classes(config_class: Any, vision: Any, text: Any) -> None:
    config = config_class()

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    assert plain(config.vision_config.to_dict()).items() >= dict(vision).items()
    # The class drops the window where it is not used, and the base of the positions stands in an object since 5.0:
    # for Qwen3-VL, 5.x has 500,000 there in place of the 5,000,000 of 4.57 and of all published models.
    wanted = {k: v for k, v in text.items() if k not in {"sliding_window", "rope_theta"}}
    assert config.text_config.to_dict().items() >= wanted.items()
    if config_class is not Qwen3VLConfig:
        assert config.text_config.rope_parameters["rope_theta"] == text["rope_theta"]
    assert {key: getattr(config, key) for key in TOKEN_IDS} == dict(TOKEN_IDS)


def limits_of(spec: ModelSpec, kind: str) -> list[int]:
    policy = spec.image_policy if kind == "images" else spec.video
    assert policy is not None
    return [policy.min_pixels, policy.max_pixels]


def put(target: Path, folder: dict[str, Any], like: str) -> Path:
    """A model with these files for images and videos; what they do not say is as in transformers' classes."""
    shutil.copy(CONFIGS / like / "config.json", target)
    for name, content in folder.items():
        (target / name).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("folder", NEWEST["folders"])
@pytest.mark.parametrize("kind", NEWEST["limits"])
def test_limits_as_the_newest_version_reads_them(kind: str, folder: str, tmp_path: Path) -> None:
    files = NEWEST["folders"][folder]
    wanted = NEWEST["limits"][kind][folder]
    spec = load_spec(put(tmp_path, files, SMALL[kind]))
    assert limits_of(spec, kind) == wanted
    # The installed version, as far as it runs without torchvision: images wholly, for videos the choice of the file.
    if kind == "images":
        size = Qwen2VLImageProcessorPil.from_pretrained(tmp_path).size
        assert [size["shortest_edge"], size["longest_edge"]] == wanted
    else:
        chosen, _ = BaseVideoProcessor.get_video_processor_dict(tmp_path)
        (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": chosen}))
        if "preprocessor_config.json" not in files:
            (tmp_path / "preprocessor_config.json").write_text("{}")
        assert limits_of(load_spec(tmp_path), kind) == wanted


def test_where_older_versions_read_other_limits() -> None:
    """4.57 prefers the files of their own; before 4.52 `size` had no effect, and videos had no settings."""
    older, newest = RECORDS["4.57.1"]["limits"], NEWEST["limits"]
    differing = {
        name for kind in newest for name in newest[kind] if older[kind][name] != newest[kind][name]
    }
    assert differing == {
        "nested over files",
        "nested images, a video file",
        "nested images, an image file",
        "nested videos",
    }
    oldest = RECORDS["4.49.0"]["limits"]["images"]
    assert oldest == RECORDS["4.45.2"]["limits"]["images"]
    for name in ("no limits", "root", "root beside size", "root maximum alone"):
        assert oldest[name] == newest["images"][name]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"preprocessor_config.json": {"size": {"shortest_edge": 9, "longest_edge": 4}}},
            r"preprocessor_config\.json: the minimum area .* is 9, above the maximum .* of 4",
        ),
        (
            {"preprocessor_config.json": {"size": {"shortest_edge": 9}}},
            "longest_edge is missing",
        ),
        (
            {
                "preprocessor_config.json": {},
                "video_preprocessor_config.json": {"patch_size": 16},
            },
            r"video_preprocessor_config\.json: patch_size is 16",
        ),
        (
            {
                "preprocessor_config.json": {},
                "processor_config.json": {"video_processor": {"image_mean": [0.5, 0.5, 0.5]}},
            },
            r"processor_config\.json: video_processor: image_mean is .* only that of images",
        ),
        (
            {"processor_config.json": {"image_processor": {"do_rescale": False}}},
            r"processor_config\.json: image_processor: do_rescale is False",
        ),
        ({"preprocessor_config.json": {"max_pixels": "many"}}, "max_pixels must be an integer"),
    ],
)
def test_settings_that_cannot_be_followed(
    files: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=words):
        load_spec(put(tmp_path, files, "Qwen2-VL-2B-Instruct"))


WINDOW = {"use_sliding_window": True}


@pytest.mark.parametrize("name", ["Qwen2-VL-2B-Instruct", "Qwen2.5-VL-3B-Instruct"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (WINDOW, None),  # as published otherwise: no layer is behind max_window_layers
        (WINDOW | {"max_window_layers": 20}, "max_window_layers"),
        (WINDOW | {"max_window_layers": 20, "sliding_window": None}, None),
        (WINDOW | {"max_window_layers": 20, "sliding_window": 200_000}, None),
        (WINDOW | {"max_window_layers": 20, "layer_types": ["full_attention"] * 99}, None),
        (WINDOW | {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window"),
        ({"max_window_layers": 0}, None),
        ({"use_sliding_window": None, "max_window_layers": 0}, None),
    ],
)
def test_a_sliding_window_is_refused_only_where_it_has_an_effect(
    name: str, changes: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    config = json.loads((CONFIGS / name / "config.json").read_text())
    # Both publishers' windows are as long as Qwen2-VL's context.
    folder_of(name, tmp_path, config | {"sliding_window": 4096} | changes)
    if words is None:
        assert load_spec(tmp_path) == load_spec(CONFIGS / name)
        return
    with pytest.raises(SpecError, match=words):
        load_spec(tmp_path)


SECTIONS = {"mrope_section": [16, 24, 24]}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "mrope", **SECTIONS}, "rope_theta": 1e6},
        {
            "rope_scaling": {"type": "default", "rope_type": "default", **SECTIONS},
            "rope_theta": 1e6,
        },
        {"rope_scaling": {"rope_type": "mrope", **SECTIONS}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **SECTIONS}},
        {"rope_parameters": {"type": "mrope", **SECTIONS}, "rope_theta": 1e6},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}},
        {
            "rope_parameters": {"rope_type": "yarn"},
            "rope_scaling": {"type": "mrope", "rope_theta": 1e6, **SECTIONS},
            "rope_theta": 7.0,
        },
        {"rope_theta": 1e6},
        {},
    ],
)
def test_spellings_of_rotary_positions(rope: dict[str, Any], nested: bool, tmp_path: Path) -> None:
    name = "Qwen2.5-VL-3B-Instruct"
    config = json.loads((CONFIGS / name / "config.json").read_text())
    for key in ("rope_scaling", "rope_theta"):
        del config[key]
    if nested:
        root = {"model_type", "vision_config", "tie_word_embeddings"}
        inner = {key: config.pop(key) for key in list(config) if key not in root}
        config["text_config"] = inner | rope
    else:
        config |= rope
    assert load_spec(folder_of(name, tmp_path, config)) == load_spec(CONFIGS / name)


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": "torch.bfloat16"},
        {"torch_dtype": None, "dtype": "bfloat16"},
        {"torch_dtype": None, "text_config": {"dtype": "bfloat16"}},
        {"torch_dtype": None, "text_config": {"torch_dtype": "bfloat16"}},
    ],
)
def test_spellings_of_the_dtype(changes: dict[str, Any], tmp_path: Path) -> None:
    name = "Qwen2-VL-2B-Instruct"
    config = json.loads((CONFIGS / name / "config.json").read_text())
    if "text_config" in changes:
        inner = {k: v for k, v in config.items() if k not in {"vision_config", "torch_dtype"}}
        changes = changes | {"text_config": inner | changes["text_config"]}
    folder_of(name, tmp_path, config | changes)
    assert load_spec(tmp_path).checkpoint_dtype == "bfloat16"
