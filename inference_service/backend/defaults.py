"""Default sampling settings: the operator's flags, then the model's generation_config.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from inference_service.families.config_file import Section, SpecError, read_config
from inference_service.sampling import RANGES, SamplingOptions
from inference_service.settings import ServiceSettings
from inference_service.text.decisions.wording import PROMPT_FORMATS


TUTORIAL_DEFAULTS: Final = SamplingOptions(temperature=0.7, max_tokens=1024)
"""The defaults of the well-known Qwen-VL tutorial."""

_MODEL_SETTINGS: Final = ("temperature", "top_p", "top_k", "repetition_penalty")


def model_defaults(directory: Path) -> SamplingOptions:
    """Reads generation_config.json; `do_sample: false` means greedy.

    Raises:
        SpecError: A setting has a value with which no request could be answered.
    """
    path = directory / "generation_config.json"
    config = read_config(path) if path.is_file() else Section(path.name, {})
    options = SamplingOptions.read(
        lambda name: _setting(config, name) if name in _MODEL_SETTINGS else None
    )
    if config.values.get("do_sample") is False:
        return dataclasses.replace(options, temperature=0.0)
    return options


def decision_prompt_format(directory: Path) -> int:
    """How the model was taught to decide: `decision_prompt_format` of generation_config.json, or 1.

    Raises:
        ValueError: It is not a known format.
    """
    path = directory / "generation_config.json"
    found = read_config(path).values.get("decision_prompt_format") if path.is_file() else None
    number = 1 if found is None else found
    if isinstance(number, bool) or number not in PROMPT_FORMATS:
        raise ValueError(
            f"generation_config.json: decision_prompt_format is {number!r}, but must be one of"
            f" {', '.join(map(str, PROMPT_FORMATS))}"
        )
    return int(number)


def _setting(config: Section, name: str) -> Any:
    value, limits = config.values.get(name), RANGES[name]
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or value not in limits:
        expected = f"a number from {limits.minimum:g} to {limits.maximum:g}"
        raise SpecError(f"{config.where}: {name} must be {expected}, not {value!r}")
    return int(value) if name == "top_k" else value


def operator_defaults(settings: ServiceSettings) -> SamplingOptions:
    """Reads the operator's `--default-<name>` flags."""
    options = SamplingOptions.read(lambda name: getattr(settings, f"default_{name}", None))
    return options.over(TUTORIAL_DEFAULTS) if settings.tutorial_defaults else options
