"""Weights are read exactly as the tables say, or not at all."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
import torch

from inference_service.engine.loader import LoadError, load_model
from inference_service.families.config_file import SpecError
from inference_service.families.registry import FAMILIES as FAMILY_OF
from inference_service.families.registry import load_spec
from inference_service.families.tables import module_parts
from tests.support.tiny_qwen_vl import build_checkpoint, reference_model


CPU = torch.device("cpu")
HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


def load(directory, dtype=torch.float32):
    return load_model(directory, dtype=dtype, device=CPU)


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A checkpoint that a test may break."""
    shutil.copytree(checkpoint, tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_names_of_today_and_as_published(family, tmp_path):
    """transformers writes these families under their first names; its modules have had others since 4.52."""
    build_checkpoint(tmp_path, family=family)
    before = dict(load(tmp_path).named_parameters())
    names = set()

    def rename(tensors):
        for name in list(tensors):
            names.add(name.split(".")[0])
            new = name.replace("model.", "model.language_model.") if name[0] == "m" else name
            new = f"model.{name}" if name.startswith("visual.") else new
            tensors[new] = tensors.pop(name)

    rewrite(tmp_path, rename)
    assert names == {"visual", "model", "lm_head"}
    after = dict(load(tmp_path).named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_one_tensor_under_both_names(tmp_path):
    build_checkpoint(tmp_path, family="qwen2_vl")
    rewrite(tmp_path, lambda t: t.update({f"model.{n}": t[n].clone() for n in t if n[0] == "v"}))
    with pytest.raises(LoadError, match="under two names"):
        load(tmp_path)


def test_fused_weights_hold_their_parts(checkpoint):
    stored = load_file(checkpoint / "model.safetensors")
    layer = load(checkpoint).decoder.layers[2]
    name = "model.language_model.layers.2"
    qkv = [stored[f"{name}.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(layer.self_attn.qkv_proj.weight, torch.cat(qkv))
    gate_up = [stored[f"{name}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    assert torch.equal(layer.mlp.gate_up_proj.weight, torch.cat(gate_up))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_and_size(dtype, checkpoint):
    model = load(checkpoint, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    values = sum(count for _, count in module_parts(model.spec))
    assert model.weight_bytes == values * dtype.itemsize
    cache = model.new_kv_cache(5, 4)
    assert (cache.dtype, tuple(cache.shape)) == (dtype, (3, 2, 5, 4, 2, 16))


def test_shards_load_as_one_file(checkpoint, tmp_path):
    build_checkpoint(tmp_path, seed=4, max_shard_size="300KB")  # as the fixture `checkpoint`
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for (name, one), (_, other) in zip(
        load(tmp_path).named_parameters(), load(checkpoint).named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_tied_head_is_one_tensor(tmp_path):
    model = load(build_checkpoint(tmp_path, tied=True))
    assert list(model.decoder.lm_head.parameters()) == []
    assert model.decoder.lm_head.form.weight is model.decoder.embed_tokens.weight


FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
FLAGS = [
    {},
    {"root": True},
    {"text": True},
    {"root": False, "text": True},
    {"root": True, "text": False},
    {"root": True, "text": True},
]


def set_flags(directory, root=None, text=None):
    """`tie_word_embeddings` at either place; None = absent."""
    config = json.loads((directory / "config.json").read_text())
    for section, value in ((config, root), (config["text_config"], text)):
        section.pop("tie_word_embeddings", None)
        if value is not None:
            section["tie_word_embeddings"] = value
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_is_not_stored_is_the_embedding(family, flags, tmp_path):
    """Versions of transformers write the flag to one place, the other, both, or neither."""
    before = load(build_checkpoint(tmp_path, family=family, tied=True)).state_dict()
    set_flags(tmp_path, **flags)
    model = load(tmp_path)
    assert model.spec == load_spec(tmp_path)  # the front expects the same
    assert model.decoder.lm_head.form.weight is model.decoder.embed_tokens.weight
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("flags", [*FLAGS, {"root": False}, {"text": False}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_differs_is_kept_whatever_the_flag(family, flags, tmp_path):
    """transformers 5 does not tie these either; fine-tuning trained the head."""
    build_checkpoint(tmp_path, family=family)
    set_flags(tmp_path, **flags)
    model, stored = load(tmp_path), load_file(tmp_path / "model.safetensors")
    assert torch.equal(model.decoder.lm_head.form.weight, stored[HEAD])
    reference = dict(reference_model(tmp_path).named_parameters())
    assert torch.equal(reference[HEAD], stored[HEAD])


@pytest.mark.parametrize(
    "flags", [{"root": False}, {"text": False}, {"root": False, "text": False}]
)
def test_a_head_that_is_lost_is_missed(flags, copy):
    rewrite(copy, lambda tensors: tensors.pop(HEAD))
    set_flags(copy, **flags)
    with pytest.raises(LoadError, match=r"1 missing .*lm_head\.weight; .*set tie_word_emb"):
        load(copy)


def test_tied_checkpoint_may_repeat_its_head(tmp_path):
    build_checkpoint(tmp_path, tied=True)
    once = load(tmp_path).state_dict()
    rewrite(tmp_path, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    both = load(tmp_path)
    assert both.weight_bytes == sum(tensor.nbytes for tensor in once.values())
    rewrite(tmp_path, lambda tensors: tensors.pop(EMBEDDING))
    head = load(tmp_path).state_dict()
    assert all(torch.equal(once[name], head[name]) for name in once)


def test_the_dtype_is_that_of_the_tensors_where_nothing_says_it(copy):
    def to_bfloat16(tensors):
        for name, tensor in tensors.items():
            tensors[name] = tensor.bfloat16()

    config = json.loads((copy / "config.json").read_text())
    for section in (config, config["text_config"]):
        section.pop("dtype", None)
    (copy / "config.json").write_text(json.dumps(config))
    assert load_spec(copy).checkpoint_dtype == "float32"
    rewrite(copy, to_bfloat16)
    assert load_spec(copy).checkpoint_dtype == "bfloat16"


WRAPPED = {
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "PEFT, merged": lambda name: f"base_model.model.{name}",
    "of vLLM": lambda name: (
        name.replace("model.language_model.", "language_model.model.")
        .replace("model.visual.", "visual.")
        .replace("lm_head", "language_model.lm_head")
    ),
    "first names": lambda name: name.replace("model.language_model.", "model.").replace(
        "model.visual.", "visual."
    ),
    "without model.": lambda name: name.removeprefix("model."),
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_other_versions_and_libraries(family, rename, tmp_path):
    expected = load(build_checkpoint(tmp_path, family=family)).state_dict()
    current = FAMILY_OF[family].current_name

    def change(tensors):
        for name in list(tensors):
            tensors[rename(current(name))] = tensors.pop(name)
        tensors["model.visual.rotary_pos_emb.inv_freq"] = torch.ones(2)  # recomputed

    rewrite(tmp_path, change)
    found = load(tmp_path).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            "model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "merge them first",
        ),
        ("model.language_model.layers.0.mlp.up_proj.qweight", "quantised weights"),
        ("model.language_model.layers.0.mlp.up_proj.weight_scale_inv", "quantised weights"),
        ("model.language_model.layers.0.mlp.up_proj.weight.absmax", "quantised weights"),
        ("v_head.summary.weight", "1 unexpected .*v_head"),
    ],
)
def test_tensors_that_show_another_form_of_weights(extra, words, copy):
    rewrite(copy, lambda tensors: tensors.update({extra: torch.zeros(1)}))
    with pytest.raises(LoadError, match=words):
        load(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.visual.merger.norm.bias"), "1 missing .*visual.merger.norm.bias"),
        (lambda t: t.pop(HEAD), "1 missing .*lm_head.weight"),  # the flag is false
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected .*: extra"),
        (
            lambda t: t.update({HEAD: t[HEAD][:-1].clone()}),
            r"shape \(599, 64\), expected \(600, 64\)",
        ),
        (lambda t: t.update({HEAD: t[HEAD].T.contiguous()}), r"shape \(64, 600\)"),
        (lambda t: t.update({HEAD: t[HEAD].to(torch.float8_e4m3fn)}), "stored as F8_E4M3"),
        (lambda t: t.update({HEAD: t[HEAD].to(torch.int8)}), "stored as I8"),
    ],
)
def test_refusals(change, words, copy):
    rewrite(copy, change)
    with pytest.raises(LoadError, match=words):
        load(copy)


def as_bin(directory, **changes: Any) -> None:
    """The same weights as two shards of the older form."""
    stored = load_file(directory / "model.safetensors") | changes
    (directory / "model.safetensors").unlink()
    halves = dict(list(stored.items())[::2]), dict(list(stored.items())[1::2])
    index: dict[str, str] = {}
    for number, half in enumerate(halves):
        torch.save(half, directory / f"{number}.bin")
        index |= dict.fromkeys(half, f"{number}.bin")
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def test_bin_shards_load_as_safetensors(copy):
    expected = load(copy).state_dict()
    as_bin(copy)
    found = load(copy).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Hostile:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("touched"),))


def test_a_bin_file_runs_nothing(copy, monkeypatch):
    monkeypatch.chdir(copy)
    (copy / "model.safetensors").unlink()
    for content, words in (
        (Hostile(), "tensors only"),
        ({"a": Hostile()}, "tensors only"),
        ({"a": 1}, "not a mapping"),
        ([torch.ones(1)], "not a mapping"),
        ({}, "not a mapping"),
        ({"a": torch.ones(1)}, "missing tensors"),
    ):
        torch.save(content, copy / "pytorch_model.bin")
        with pytest.raises(LoadError, match=words):
            load(copy)
    (copy / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(LoadError, match="tensors only"):
        load(copy)
    assert not (copy / "touched").exists()


def test_bad_bin_shards_among_good_ones(copy, monkeypatch):
    monkeypatch.chdir(copy)
    as_bin(copy)
    tensors = torch.load(copy / "1.bin", weights_only=True)
    (copy / "1.bin").unlink()
    with pytest.raises(LoadError, match=r"lists 1\.bin, which is missing"):
        load(copy)
    torch.save(tensors | {"a": Hostile()}, copy / "1.bin")
    with pytest.raises(LoadError, match=r"1\.bin cannot be read as tensors only"):
        load(copy)
    save_file(tensors, copy / "1.bin")
    with pytest.raises(LoadError, match=r"1\.bin cannot be read as tensors only"):
        load(copy)
    torch.save(tensors | torch.load(copy / "0.bin", weights_only=True), copy / "1.bin")
    with pytest.raises(LoadError, match="exists twice"):
        load(copy)
    assert not (copy / "touched").exists()


def test_bin_shards_are_checked_like_others(copy):
    as_bin(copy, **{HEAD: torch.ones(3, 4, dtype=torch.int8)})
    with pytest.raises(LoadError, match=r"shape \(3, 4\)"):
        load(copy)


def test_safetensors_are_preferred(copy):
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    load(copy)


def test_no_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="there are no weights"):
        load(copy)


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\x80\x04K\x01."])
def test_broken_file(content, copy):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read as safetensors"):
        load(copy)


def test_truncated_file(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="cannot be read as safetensors"):
        load(copy)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "not a file name in the same directory"),
        ({"weight_map": {"a": "/etc/secret.safetensors"}}, "not a file name in the same directory"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors, which is missing"),
        ({"weight_map": {"a": "shard.bin"}}, "not a file name in the same directory"),
        ({"weight_map": {}}, "lists no files"),
        ({}, "weight_map is missing"),
    ],
)
def test_broken_index(index, words, copy):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=words):
        load(copy)


def test_a_tensor_in_two_shards(copy):
    (copy / "model.safetensors").rename(copy / "a.safetensors")
    shutil.copy(copy / "a.safetensors", copy / "b.safetensors")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="exists twice"):
        load(copy)


def test_configuration_errors_come_first(copy):
    (copy / "config.json").unlink()
    with pytest.raises(SpecError, match=r"config\.json cannot be read"):
        load(copy)


def test_progress_is_logged_while_weights_load(copy, monkeypatch, caplog):
    monkeypatch.setattr("inference_service.engine.loader._PROGRESS_S", 0.0)
    caplog.set_level("INFO", logger="inference_service.engine.loader")
    load(copy)
    done = [record.args[0] for record in caplog.records]
    assert done == sorted(done)
    assert done[0] == 0
    assert 50 < done[-1] < 100
    assert caplog.messages[-1].startswith(f"loading weights: {done[-1]} %, 0.0")
