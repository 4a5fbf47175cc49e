"""Which sampling settings hold where a request names none: the operator's flags, then generation_config.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from inference_service.sampling import SamplingOptions
from inference_service.settings import ServiceSettings


TUTORIAL_DEFAULTS: Final = SamplingOptions(temperature=0.7, max_tokens=1024)
"""What the well-known Qwen-VL tutorial sets where a request says nothing."""

_OF_THE_MODEL: Final = ("temperature", "top_p", "top_k", "repetition_penalty")


def model_defaults(directory: Path) -> SamplingOptions:
    """Reads generation_config.json; `do_sample: false` means greedy."""
    path = directory / "generation_config.json"
    values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    said = SamplingOptions.read(lambda name: values.get(name) if name in _OF_THE_MODEL else None)
    return dataclasses.replace(said, temperature=0.0) if values.get("do_sample") is False else said


def operator_defaults(settings: ServiceSettings) -> SamplingOptions:
    """What the operator's flags say: `--default-<name>` for the settings that have one."""
    said = SamplingOptions.read(lambda name: getattr(settings, f"default_{name}", None))
    said = dataclasses.replace(said, max_tokens=settings.max_tokens_default)
    return said.over(TUTORIAL_DEFAULTS) if settings.tutorial_defaults else said
