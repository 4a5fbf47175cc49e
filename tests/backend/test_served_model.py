"""The parts of a model that the front loads."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil

import pytest

from inference_service.backend.served_model import ServedModel
from tests.support.qwen_text import token_id, write_text_files


CONFIG = Path(__file__).parents[1] / "golden/configs/Qwen2-VL-2B-Instruct"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    shutil.copytree(CONFIG, tmp_path, dirs_exist_ok=True)
    config = json.loads((CONFIG / "config.json").read_text())
    names = {
        "image": "image_pad",
        "video": "video_pad",
        "vision_start": "vision_start",
        "vision_end": "vision_end",
    }
    ids = {f"{key}_token_id": token_id(f"<|{name}|>") for key, name in names.items()}
    (tmp_path / "config.json").write_text(json.dumps(config | ids))
    return write_text_files(tmp_path, "{{ messages }}")


def revision(directory: Path) -> str:
    return ServedModel.load(directory, ("model",)).revision


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "merges.txt"])
def test_revision_changes_with_the_files_of_the_model(directory: Path, name: str) -> None:
    seen = [revision(directory)]
    (directory / name).write_bytes(b"x")
    seen.append(revision(directory))
    os.utime(directory / name, ns=(1, 1))
    seen.append(revision(directory))
    assert len(set(seen)) == 3


def test_revision_does_not_change_with_other_files(directory: Path) -> None:
    before = revision(directory)
    (directory / "README.md").write_text("x")
    (directory / "parts.safetensors").mkdir()
    assert revision(directory) == before
