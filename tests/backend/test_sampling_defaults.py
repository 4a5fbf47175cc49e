"""Whose sampling settings hold: the operator's flags before the model's generation_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inference_service.backend.defaults import model_defaults, operator_defaults
from inference_service.sampling import RANGES, SamplingOptions
from inference_service.settings import ServiceSettings


FLAGS = [name for name in ServiceSettings.model_fields if name.startswith("default_")]


def test_no_flag_says_nothing() -> None:
    assert operator_defaults(ServiceSettings()) == SamplingOptions()


def test_the_tutorials_defaults() -> None:
    said = operator_defaults(ServiceSettings(tutorial_defaults=True))
    assert said == SamplingOptions(temperature=0.7, max_tokens=1024)


def test_zero_is_something_said() -> None:
    greedy = SamplingOptions(temperature=0.0).over(SamplingOptions(temperature=0.7, top_k=20))
    assert greedy == SamplingOptions(temperature=0.0, top_k=20)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_default_flag_is_read_and_has_the_range_of_its_setting(flag: str) -> None:
    name = flag.removeprefix("default_")
    limits = RANGES[name]
    for value in (limits.minimum, limits.maximum):
        expected: dict[str, Any] = {name: value}
        settings = ServiceSettings.load({flag: value}, {})
        assert operator_defaults(settings) == SamplingOptions(**expected)
    for value in (limits.minimum - 1, limits.maximum + 1):
        with pytest.raises(SystemExit, match=flag.replace("_", "-")):
            ServiceSettings.load({flag: value}, {})


def test_what_generation_config_says(tmp_path: Path) -> None:
    assert model_defaults(tmp_path) == SamplingOptions()
    says: dict[str, Any] = {
        "top_p": 0.5,
        "top_k": 7,
        "repetition_penalty": 1.5,
        "temperature": 0.25,
    }
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(says | {"max_length": 9, "eos_token_id": 1}))
    assert model_defaults(tmp_path) == SamplingOptions(**says)
    path.write_text(json.dumps(says | {"do_sample": False}))
    assert model_defaults(tmp_path) == SamplingOptions(**(says | {"temperature": 0.0}))
