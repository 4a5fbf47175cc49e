"""Every setting does something: some module of its program reads it."""

from __future__ import annotations

from pathlib import Path
import re

import pytest

from inference_service.sampling import SCALARS
from inference_service.settings import ServiceSettings
from qwenvl.flags import FlagSettings
from rest_adapter.settings import AdapterSettings


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("settings", "package"),
    [(ServiceSettings, "inference_service"), (AdapterSettings, "rest_adapter")],
)
def test_every_setting_is_read(settings: type[FlagSettings], package: str) -> None:
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / package).rglob("*.py")]
    read = set(re.findall(r"settings\.(\w+)", "\n".join(sources)))
    read |= {f"default_{name}" for name in SCALARS}  # by name: see tests/backend
    assert set(settings.model_fields) <= read
