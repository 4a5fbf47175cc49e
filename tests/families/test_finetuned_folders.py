"""Directories as trainers leave them: served, or refused in one line that says what to do."""

from __future__ import annotations

from collections.abc import Callable
import json
from pathlib import Path
import shutil
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
import torch

from inference_service.backend.served_model import ServedModel
from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Role, TextPart
from inference_service.engine.loader import load_model
from inference_service.families.registry import family_of
from inference_service.hub.resolve import ModelNotFound, resolve_model
from inference_service.hub.snapshot import SnapshotError, verify_weights
from tests.support.qwen_text import QWEN2_VL, token_id, write_text_files
from tests.support.tiny_qwen_vl import build_checkpoint


IDS = {
    "image_token_id": token_id("<|image_pad|>"),
    "video_token_id": token_id("<|video_pad|>"),
    "vision_start_token_id": token_id("<|vision_start|>"),
    "vision_end_token_id": token_id("<|vision_end|>"),
}
BOM = b"\xef\xbb\xbf"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123456789\n"
ORIGIN = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole directory. Read-only: shared by all tests."""
    directory = tmp_path_factory.mktemp("trained")
    build_checkpoint(directory, family="qwen2_5_vl", tied=True, token_ids=IDS)
    return write_text_files(directory, QWEN2_VL)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "model"))


def serve(directory: Path) -> tuple[ServedModel, dict[str, torch.Tensor]]:
    """What `qwenvl serve` does before it listens, in its order: weights, configuration, text; then the engine."""
    resolved = resolve_model(str(directory))
    verify_weights(resolved.directory)
    served = ServedModel.load(resolved.directory, resolved.served_names)
    model = load_model(directory, dtype=torch.float32, device=torch.device("cpu"))
    return served, model.state_dict()


def change(directory: Path, name: str, **values: Any) -> None:
    path = directory / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | values))


def remove(*names: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return change


def adapter(directory: Path) -> None:
    change(directory, "adapter_config.json", base_model_name_or_path=ORIGIN, peft_type="LORA")
    (directory / "adapter_model.safetensors").write_bytes(b"")


def only_adapter(directory: Path) -> None:
    adapter(directory)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (directory / name).unlink()


def with_marks(directory: Path) -> None:
    for path in [*directory.glob("*.json"), *directory.glob("*.jinja")]:
        path.write_bytes(BOM + path.read_bytes())


def training_states(directory: Path) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        (directory / name).write_bytes(b"state")
    (directory / "optimizer.bin").write_bytes(b"state")
    (directory / "trainer_state.json").write_text("[]")
    (directory / "global_step500").mkdir()
    (directory / "latest").write_text("global_step500")


def stale_index(directory: Path) -> None:
    listed = {"x": "model-00001-of-00004.safetensors"}
    change(directory, "model.safetensors.index.json", weight_map=listed)


def shards_without_index(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    for number in (1, 2):
        half = {name: tensors[name] for name in names[number - 1 :: 2]}
        save_file(half, directory / f"model-{number:05}-of-00002.safetensors")
    (directory / "model.safetensors").unlink()


def shards_and_stale_index(directory: Path) -> None:
    shards_without_index(directory)
    stale_index(directory)


def merged_from_quantised(directory: Path) -> None:
    """QLoRA: the merged weights are plain, and config.json keeps the setting of the base model."""
    change(directory, "config.json", quantization_config={"quant_method": "bitsandbytes"})


def saved_by_transformers_4_49(directory: Path) -> None:
    """Settings at top level, defaults left out, first names of the tensors, no video file, both old limits."""
    config = json.loads((directory / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"]}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    vision = config["vision_config"]
    for key in ("spatial_merge_size", "temporal_patch_size", "hidden_act", "rope_parameters"):
        vision.pop(key, None)
    flat = config | text | {"model_type": "qwen2_5_vl", "torch_dtype": "float32"}
    for key in ("layer_types", "rope_parameters", "rms_norm_eps", "dtype"):
        flat.pop(key, None)
    flat["rms_norm_eps"] = text["rms_norm_eps"]
    (directory / "config.json").write_text(json.dumps(flat))


SERVED = {
    "as saved": lambda directory: None,
    "byte order marks": with_marks,
    "training states": training_states,
    "a stale index beside the file": stale_index,
    "shards without index": shards_without_index,
    "shards and a stale index": shards_and_stale_index,
    "merged from a quantised model": merged_from_quantised,
    "saved by 4.49": saved_by_transformers_4_49,
    "no generation_config.json": remove("generation_config.json"),
}


@pytest.mark.parametrize("left", SERVED.values(), ids=SERVED)
def test_what_is_served(left: Callable[[Path], None], folder: Path, trained: Path) -> None:
    before, expected = serve(trained)
    left(folder)
    served, weights = serve(folder)
    assert served.spec == before.spec or left is SERVED["no generation_config.json"]
    assert served.tokenizer.special_tokens == before.tokenizer.special_tokens
    assert served.defaults == before.defaults
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    _, chat = family_of(served.spec).load_text(folder, served.spec)
    message = ChatMessage(role=Role.USER, parts=(ImagePart(), TextPart(text="What is it?")))
    request = ChatRequest(request_id="r", model="m", messages=(message,))
    assert IDS["image_token_id"] in chat.write(request).token_ids


def quantised(directory: Path) -> None:
    change(directory, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
    save_file(tensors, directory / "model.safetensors")


def quantised_without_a_word(directory: Path) -> None:
    quantised(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))


def no_text_files_but_an_origin(directory: Path) -> None:
    remove("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")(directory)
    remove("preprocessor_config.json")(directory)
    change(directory, "config.json", _name_or_path=ORIGIN)


def only_stale_index(directory: Path) -> None:
    stale_index(directory)
    (directory / "model.safetensors").unlink()


def only(*names: str) -> Callable[[Path], None]:
    """No weights, but these files in their place."""

    def change(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        for name in names:
            if name.endswith("_0"):
                (directory / name).mkdir()
            else:
                (directory / name).write_bytes(b"x")

    return change


def content(name: str, data: bytes) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_bytes(data)

    return change


def moved_cache(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/abc")


def adapters_of_steps(directory: Path) -> None:
    only_adapter(directory)
    steps(directory)


def adapter_of_a_directory(directory: Path) -> None:
    only_adapter(directory)
    change(directory, "adapter_config.json", base_model_name_or_path="/models/base")


def template(source: str) -> Callable[[Path], None]:
    return content("chat_template.jinja", source.encode())


def generation(text: str) -> Callable[[Path], None]:
    return content("generation_config.json", text.encode())


def runs(directory: Path) -> None:
    """ms-swift: a folder for each run, and in it one for each step."""
    steps(directory)
    (directory / "v0-20250101").mkdir()
    (directory / "checkpoint-500").rename(directory / "v0-20250101" / "checkpoint-500")


def steps(directory: Path) -> None:
    whole = directory / "checkpoint-500"
    whole.mkdir()
    for path in list(directory.iterdir()):
        if path.is_file():
            path.rename(whole / path.name)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no image settings": (
        remove("preprocessor_config.json"),
        rf"lacks preprocessor_config\.json: copy from .*such as {ORIGIN}",
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        rf"lacks tokenizer\.json, tokenizer_config\.json: copy from .*such as {ORIGIN}",
    ),
    "no template": (remove("chat_template.jinja"), r"lacks chat_template\.jinja .*: copy from"),
    "only weights": (
        no_text_files_but_an_origin,
        rf"lacks preprocessor_config\.json, tokenizer\.json, .*chat_template.*: copy from {ORIGIN}$",
    ),
    "an adapter": (only_adapter, rf"has a LoRA adapter .*: merge it into {ORIGIN} "),
    "an adapter beside weights": (
        adapter,
        rf"merge it into {ORIGIN} .*; if the weights here are merged already, remove adapter_config",
    ),
    "GPTQ": (quantised, r"quantised \(quant_method gptq\).* not supported: serve the model in"),
    "GPTQ without a word": (quantised_without_a_word, "quantised weights are not supported"),
    "steps": (steps, r"no config\.json; models in it: checkpoint-500"),
    "runs": (runs, r"no config\.json; models in it: v0-20250101/checkpoint-500$"),
    "adapters of steps": (
        adapters_of_steps,
        r"no config\.json; LoRA adapters in it: checkpoint-500$",
    ),
    "an adapter of a directory": (adapter_of_a_directory, r": merge it into /models/base \("),
    "no weights": (remove("model.safetensors"), "there are no weights"),
    "DeepSpeed": (only("zero_to_fp32.py"), "only states of DeepSpeed: convert them with zero_to"),
    "FSDP": (only("pytorch_model_fsdp_0"), r"only states of FSDP \(pytorch_model_fsdp_0\)"),
    "FSDP, one file": (only("pytorch_model_fsdp.bin"), r"only states of FSDP"),
    "GGUF": (only("model-q4.gguf"), r"only GGUF \(model-q4\.gguf\), which is not supported"),
    "an adapter as weights": (only("adapter_model.bin"), r"only a LoRA adapter \(adapter_model"),
    "pickles with objects": (
        only("pytorch_model.bin"),
        "cannot be read as tensors only: it is damaged, or",
    ),
    "a moved cache": (moved_cache, "model.safetensors is a link to .*abc, which does not exist"),
    **{
        f"{what} in {name}": (content(name, data), rf"{name.replace('.', '.')} {words}")
        for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
        for what, data, words in (
            ("LFS", LFS, "is only a pointer of Git LFS: run `git lfs pull`"),
            ("a page", b"\n<!DOCTYPE html><html>404</html>", "is a web page, perhaps an error"),
            ("nothing", b"", "is empty: download it again"),
        )
    },
    "JSON cut off": (
        content("config.json", b'{\n"a": 1,'),
        r"config\.json is not valid JSON: .* in line 2, column 8$",
    ),
    "no tokenizer in it": (
        content("tokenizer.json", b"[]"),
        r"tokenizer\.json is not a definition of a tokenizer: invalid type: sequence",
    ),
    "an open block": (template("{% for m in messages %}"), r"malformed in line 1: Unexpected end"),
    "an unknown filter": (template("\n{{ x | foo }}"), r"malformed in line 2: No filter named"),
    "a template of no messages": (template("hello"), "renders no message of a user$"),
    "a template that refuses": (template("{{ raise_exception('no') }}"), "of a user: .* says 'no'"),
    "a template that fails": (template("{{ a.b.c }}"), "it fails with .*'a' is undefined"),
    "a template without end": (
        template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "it fails with 'maximum recursion depth",
    ),
    "no temperature": (
        generation('{"eos_token_id": 1, "temperature": NaN}'),
        r"generation_config\.json: temperature must be a number from 0 to 2, not nan",
    ),
    "a temperature in words": (
        generation('{"eos_token_id": 1, "temperature": "hot"}'),
        "temperature must be a number from 0 to 2, not 'hot'",
    ),
    "a probability of 7": (
        generation('{"eos_token_id": 1, "top_p": 7}'),
        "top_p must be a number from 0 to 1, not 7",
    ),
    "no weights but a stale index": (
        only_stale_index,
        "lists model-00001-of-00004.safetensors, which is missing",
    ),
}


@pytest.mark.parametrize(("left", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_in_one_line(
    left: Callable[[Path], None], words: str, folder: Path
) -> None:
    left(folder)
    with pytest.raises((ValueError, ModelNotFound, SnapshotError), match=words) as error:
        serve(folder)
    assert "\n" not in str(error.value)
