"""Which sampling settings hold where a request names none: the operator's, then the model's.

Owns the reading of generation_config.json and of the `--default-...` flags.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any, Self

from inference_service.settings import ServiceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """What one source says; None = nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None

    @classmethod
    def from_dir(cls, directory: Path) -> Self:
        """Reads generation_config.json; `do_sample: false` means greedy."""
        path = directory / "generation_config.json"
        values: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return cls(
            temperature=0.0 if values.get("do_sample") is False else values.get("temperature"),
            top_p=values.get("top_p"),
            top_k=values.get("top_k"),
            repetition_penalty=values.get("repetition_penalty"),
        )

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> Self:
        """What the operator's flags say."""
        flags = cls(
            temperature=settings.default_temperature,
            top_p=settings.default_top_p,
            top_k=settings.default_top_k,
            min_p=settings.default_min_p,
            repetition_penalty=settings.default_repetition_penalty,
            presence_penalty=settings.default_presence_penalty,
            frequency_penalty=settings.default_frequency_penalty,
            max_tokens=settings.max_tokens_default,
        )
        return flags.over(TUTORIAL_DEFAULTS) if settings.tutorial_defaults else flags

    def over(self, other: SamplingDefaults) -> Self:
        """These settings, and those of `other` where these say nothing."""
        unsaid = {
            field.name: getattr(other, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is None
        }
        return dataclasses.replace(self, **unsaid)


TUTORIAL_DEFAULTS = SamplingDefaults(temperature=0.7, max_tokens=1024)
"""What the well-known Qwen-VL tutorial sets where a request says nothing."""
