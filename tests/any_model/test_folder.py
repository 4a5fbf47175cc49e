"""Folders that could run code, or that no backend knows, are refused before anything is imported for them."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import shutil
import subprocess
import sys
from typing import Any

import pytest

from inference_service.any_model.choice import BackendKind, choose_backend
from inference_service.any_model.facts import ModelFacts, given_facts, handed_over, read_facts
from inference_service.any_model.folder import check_configuration, check_folder
from inference_service.any_model.registry import RegistryError, architectures
from inference_service.backend.transformers import TransformersModel
from inference_service.families.config_file import SpecError
from inference_service.model_spec import NO_VIDEOS
from inference_service.settings import ServiceSettings


DEMO = Path(__file__).parents[2] / "inference_service/demo/model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The demo model under an architecture of transformers alone."""
    directory = tmp_path / "model"
    shutil.copytree(DEMO, directory)
    change(directory, "config.json", model_type="llava_next")
    return directory


def change(directory: Path, name: str, **values: object) -> None:
    path = directory / name
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | values))


def test_a_harmless_folder(folder: Path) -> None:
    assert check_folder(folder) == "llava_next"
    assert choose_backend("auto", folder) is BackendKind.TRANSFORMERS


@pytest.mark.parametrize(
    "name",
    [
        "modeling_x.py",
        "custom_generate/generate.py",
        "sub/deeper/x.py",
        "x.so",
        "pytorch_model.bin",
        "model.pt",
        "optimizer.ckpt",
        "training_args.bin",
        "rng.pkl",
        "arrays.npy",
        "path.pth",
        "MODEL.BIN",
        "sub/weights.Pt",
        "x.egg",
    ],
)
def test_code_and_pickles(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    for wanted in ("auto", "transformers"):
        with pytest.raises(SpecError, match=Path(name).name):
            choose_backend(wanted, folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling_x.Model"}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "x.Model"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.T", None]}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "x.P"}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "x.P"}}),
        ("generation_config.json", {"custom_generate": "org/repo"}),
        ("anything.json", {"list": [{"deep": {"auto_map": {"AutoModel": "x.M"}}}]}),
        ("image_processor/preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "x.P"}}),
        ("processor_config.json", {"image_processor": {"auto_map": {"AutoProcessor": "x.P"}}}),
    ],
)
def test_configurations_that_name_code(folder: Path, name: str, values: dict[str, object]) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    change(folder, name, **values)
    with pytest.raises(SpecError, match=rf"{name}: (auto_map|custom_generate) names code"):
        check_configuration(folder)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("config.json", {"attn_implementation": "org/kernel:fn"}, "kernels of a hub"),
        ("config.json", {"_attn_implementation": "org/kernel"}, "kernels of a hub"),
        ("config.json", {"_attn_implementation_internal": "org/kernel"}, "kernels of a hub"),
        ("config.json", {"text_config": {"attn_implementation": "a/b"}}, "kernels of a hub"),
        ("config.json", {"attn_implementation": {"text_config": "a/b"}}, "kernels of a hub"),
        ("config.json", {"experts_implementation": "a/b@main"}, "kernels of a hub"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "is quantised"),
        ("config.json", {"text_config": {"quantization_config": {"bits": 4}}}, "is quantised"),
        (
            "processor_config.json",
            {"audio_tokenizer": {"audio_tokenizer_name_or_path": "/tmp/evil"}},
            "names another model",
        ),
        ("adapter_config.json", {"base_model_name_or_path": "org/evil"}, "LoRA adapter"),
    ],
)
def test_configurations_that_name_other_things_to_load(
    folder: Path, name: str, values: dict[str, object], words: str
) -> None:
    change(folder, name, **values)
    for wanted in ("auto", "transformers"):
        with pytest.raises(SpecError, match=words):
            choose_backend(wanted, folder)


def test_what_published_configurations_have_is_harmless(folder: Path) -> None:
    change(
        folder,
        "config.json",
        auto_map=None,
        attn_implementation="flash_attention_2",
        _attn_implementation=None,
        quantization_config=None,
    )
    change(folder, "generation_config.json", custom_generate=None)
    assert check_folder(folder) == "llava_next"


def test_links(folder: Path, tmp_path: Path) -> None:
    """As hubs' caches have them for files; a folder is looked into once, also if links go round in circles."""
    weights = tmp_path / "blobs"
    weights.mkdir()
    (folder / "model.safetensors").rename(weights / "0123abc")
    (folder / "model.safetensors").symlink_to(weights / "0123abc")
    for name in "ab":
        (folder / name).mkdir()
        for link in ("c", "d", "e"):
            (folder / name / link).symlink_to(folder, target_is_directory=True)
    assert check_folder(folder) == "llava_next"
    (weights / "code").mkdir()
    (weights / "code" / "x.py").write_text("")
    (folder / "a" / "linked").symlink_to(weights / "code", target_is_directory=True)
    with pytest.raises(SpecError, match=r"a/linked/x\.py is code"):
        check_folder(folder)


def test_deep_nesting_is_no_way_around(folder: Path) -> None:
    (folder / "deep.json").write_text('{"a":' * 90 + "{}" + "}" * 90)
    with pytest.raises(SpecError, match="nested too deeply"):
        check_configuration(folder)
    (folder / "deep.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(SpecError, match="nested too deeply"):
        check_configuration(folder)


def test_an_unknown_architecture_is_refused_with_both_reasons(folder: Path) -> None:
    change(folder, "config.json", model_type="no_such_model")
    with pytest.raises(SpecError) as refusal:
        choose_backend("auto", folder)
    message = str(refusal.value)
    assert "native: config.json: model_type 'no_such_model' is not supported" in message
    assert "transformers: config.json: model_type 'no_such_model' is not among the" in message


def test_incomplete_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SpecError, match="but its header requires"):
        check_folder(folder)
    weights.unlink()
    with pytest.raises(SpecError, match="no weights"):
        check_folder(folder)


def test_ours_stays_native_unless_asked(folder: Path) -> None:
    assert choose_backend("auto", DEMO) is BackendKind.NATIVE
    assert choose_backend("native", DEMO) is BackendKind.NATIVE
    assert choose_backend("transformers", DEMO) is BackendKind.TRANSFORMERS
    with pytest.raises(SpecError, match="'llava_next' is not supported"):
        choose_backend("native", folder)


def test_the_registry_is_that_of_the_library() -> None:
    from transformers.models.auto import modeling_auto

    table = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    assert architectures() == dict(table)


def test_without_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    architectures.cache_clear()
    try:
        with pytest.raises(RegistryError, match=r"pip install 'qwen-vl-serving\[transformers\]'"):
            architectures()
        with pytest.raises(SpecError, match="transformers is not installed"):
            choose_backend("auto", folder)
        assert choose_backend("auto", DEMO) is BackendKind.NATIVE
    finally:
        architectures.cache_clear()


def test_nothing_is_imported_for_a_refusal(folder: Path) -> None:
    """A folder with code is refused in a process that has neither torch nor transformers, and the code is not run."""
    (folder / "modeling_x.py").write_text("raise SystemExit('it ran')")
    program = (
        "import sys; from pathlib import Path\n"
        "from inference_service.any_model.choice import choose_backend\n"
        "try: choose_backend('auto', Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        "print({'torch', 'transformers', 'modeling_x'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    said = done.stdout.splitlines()
    assert "modeling_x.py is code" in said[0]
    assert said[1] == "set()"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit('ValueError: too strange')", "too strange"),
        ("print('{}')", "described the model wrongly"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "within 120 s of CPU time"),
    ],
)
def test_what_the_library_refuses(folder: Path, program: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        read_facts(folder, (sys.executable, "-c", program))


FACTS = ModelFacts(
    model_type="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    vocab_size=1280,
    max_position_embeddings=4096,
    eos_token_ids=(1232,),
    checkpoint_dtype="float32",
    parts=(("vision", 1), ("adapter", 2), ("language", 3)),
    kv_values_per_token=8,
    image_texts=("<|image_pad|>",),
)


def test_facts_that_are_handed_over_hold_until_the_files_change(folder: Path) -> None:
    variables = handed_over(folder, FACTS)
    assert given_facts(folder, variables) == FACTS
    assert given_facts(DEMO, variables) is None
    for broken in ({}, dict.fromkeys(variables, ""), dict.fromkeys(variables, "{}")):
        assert given_facts(folder, broken) is None
    change(folder, "config.json", model_type="qwen3_vl")
    assert given_facts(folder, variables) is None


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, facts: ModelFacts = FACTS) -> Any:
    for name, value in handed_over(folder, facts).items():
        monkeypatch.setenv(name, value)
    return TransformersModel.load(folder, ("x",), ServiceSettings())


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_templates_do_nothing_but_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises((SpecError, ValueError), match="template"):
        load(folder, monkeypatch)


def test_videos_that_need_a_package_are_refused_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = replace(FACTS, lacking_for_videos="torchvision")
    assert "Videos need torchvision" in load(folder, monkeypatch, lacking).media.no_videos
    assert load(folder, monkeypatch).media.no_videos == NO_VIDEOS
    both = replace(FACTS, video_texts=("<|video_pad|>",))
    assert load(folder, monkeypatch, both).media.video is not None
