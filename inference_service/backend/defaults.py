"""Default sampling settings: the operator's flags, then the model's generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any, Final

from inference_service.families.config_file import read_config
from inference_service.sampling import SamplingOptions
from inference_service.settings import ServiceSettings
from inference_service.text.decisions.wording import PROMPT_FORMATS


TUTORIAL_DEFAULTS: Final = SamplingOptions(temperature=0.7, max_tokens=1024)
"""The defaults of the well-known Qwen-VL tutorial."""

_MODEL_SETTINGS: Final = ("temperature", "top_p", "top_k", "repetition_penalty")


def model_defaults(directory: Path) -> SamplingOptions:
    """Reads generation_config.json; `do_sample: false` means greedy."""
    path = directory / "generation_config.json"
    values: Mapping[str, Any] = read_config(path).values if path.is_file() else {}
    options = SamplingOptions.read(
        lambda name: values.get(name) if name in _MODEL_SETTINGS else None
    )
    if values.get("do_sample") is False:
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


def operator_defaults(settings: ServiceSettings) -> SamplingOptions:
    """Reads the operator's `--default-<name>` flags."""
    options = SamplingOptions.read(lambda name: getattr(settings, f"default_{name}", None))
    return options.over(TUTORIAL_DEFAULTS) if settings.tutorial_defaults else options
