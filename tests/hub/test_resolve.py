"""What MODEL on the command line means."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_service.demo import MODEL_DIR
from inference_service.hub.resolve import DEMO_NAMES, ModelNotFound, resolve_model


def test_absent_is_the_demo() -> None:
    resolved = resolve_model(None)
    assert resolved.directory == MODEL_DIR
    assert resolved.served_names == DEMO_NAMES
    assert (MODEL_DIR / "config.json").is_file()


def test_a_directory_is_served_under_its_name(tmp_path: Path) -> None:
    model = tmp_path / "My-VL"
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert resolve_model(str(model)).served_names == ("My-VL",)
    assert resolve_model(str(model), ("a", "b")).served_names == ("a", "b")


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-4B-Instruct", "qwen/Qwen-VL-Chat"])
@pytest.mark.parametrize("hub", ["modelscope", "huggingface"])
def test_the_error_for_a_hub_id_says_how_to_download_it(
    name: str, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=f"qwenvl download {name}"):
        resolve_model(name, hub=hub)


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelNotFound, match="neither"):
        resolve_model("/no/such/place/at/all")
