"""`qwenvl check` says which backend will run, what the reference path costs, and why none can."""

from __future__ import annotations

import json
from pathlib import Path
import shutil

import pytest

from inference_service.any_model.facts import ModelFacts
from inference_service.cli import main
from inference_service.commands import subject
from inference_service.commands.check import FITS, USAGE
from inference_service.demo import MODEL_DIR


FACTS = ModelFacts(
    model_type="llava_next",
    architecture="LlavaNextForConditionalGeneration",
    vocab_size=1280,
    max_position_embeddings=4096,
    eos_token_ids=(1232,),
    checkpoint_dtype="bfloat16",
    parts=(("vision", 3_000_000), ("adapter", 2_000_000), ("language", 70_000_000)),
    kv_values_per_token=768,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Configuration files, without weights, of a model that only transformers knows."""
    directory = tmp_path / "model"
    shutil.copytree(MODEL_DIR, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "llava_next"}))
    return directory


def test_the_reference_path_is_named_and_costed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subject, "read_facts", lambda directory: FACTS)
    assert main(["check", str(folder), "--device", "cpu", "--dtype", "float32"]) == FITS
    said = capsys.readouterr().out
    assert "backend     transformers, the reference path" in said
    assert "without decisions and prefix cache" in said
    assert "0.07 B        75000000" in said
    assert "weights     286.10 MiB (0.30 GB) in float32" in said
    assert "KV cache    3.00 KiB per token" in said
    assert main(["check", str(folder), "--device", "cpu", "--json"]) == FITS
    document = json.loads(capsys.readouterr().out)
    assert document["backend"] == "transformers"
    assert document["parameters"]["total"] == 75_000_000
    assert f"qwenvl serve {folder}" in document["command"]


def test_the_command_keeps_the_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--device", "cpu"]) == FITS
    assert "backend     native" in capsys.readouterr().out
    monkeypatch.setattr(subject, "read_facts", lambda directory: FACTS)
    assert main(["check", "--device", "cpu", "--backend", "transformers"]) == FITS
    said = capsys.readouterr().out
    assert "backend     transformers" in said
    assert "--backend transformers" in said.splitlines()[-1]


def test_a_refusal_names_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    assert main(["check", str(folder)]) == USAGE
    said = capsys.readouterr().err
    assert "native: config.json: model_type 'no_such_model'" in said
    assert "transformers: config.json: model_type 'no_such_model'" in said
    assert main(["check", str(folder), "--backend", "native"]) == USAGE
    assert "transformers" not in capsys.readouterr().err


@pytest.mark.full
def test_what_the_library_says_of_the_demo_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Of meta tensors, in a process of its own; the numbers are those of our own reading."""
    documents = []
    for backend in ("native", "transformers"):
        assert main(["check", "--device", "cpu", "--backend", backend, "--json"]) == FITS
        documents.append(json.loads(capsys.readouterr().out))
    for name in ("parameters", "dtype", "kv_bytes_per_token", "window_tokens"):
        assert documents[0][name] == documents[1][name]
