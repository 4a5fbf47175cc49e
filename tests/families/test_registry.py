"""Every family brings its parts, in modules that load no more than they need."""

from __future__ import annotations

from importlib import import_module
import subprocess
import sys

import pytest

from inference_service.families.family import Family, TextModule, VisionModule
from inference_service.families.glm_4v import text as glm_4v_text
from inference_service.families.glm_4v import vision as glm_4v_vision
from inference_service.families.qwen2_5_vl import text as qwen2_5_vl_text
from inference_service.families.qwen2_5_vl import vision as qwen2_5_vl_vision
from inference_service.families.qwen2_vl import text as qwen2_vl_text
from inference_service.families.qwen2_vl import vision as qwen2_vl_vision
from inference_service.families.qwen3_vl import text as qwen3_vl_text
from inference_service.families.qwen3_vl import vision as qwen3_vl_vision
from inference_service.families.qwen_vl import text as qwen_vl_text
from inference_service.families.qwen_vl import vision as qwen_vl_vision
from inference_service.families.registry import FAMILIES


# That the modules have these types is checked by mypy.
TEXT: dict[str, TextModule] = {
    "qwen_vl": qwen_vl_text,
    "qwen2_vl": qwen2_vl_text,
    "qwen2_5_vl": qwen2_5_vl_text,
    "qwen3_vl": qwen3_vl_text,
    "glm_4v": glm_4v_text,
}
VISION: dict[str, VisionModule] = {
    "qwen_vl": qwen_vl_vision,
    "qwen2_vl": qwen2_vl_vision,
    "qwen2_5_vl": qwen2_5_vl_vision,
    "qwen3_vl": qwen3_vl_vision,
    "glm_4v": glm_4v_vision,
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_modules_of_a_family_are_found(family: Family) -> None:
    assert import_module(f"{family.package}.text") is TEXT[family.name]
    assert import_module(f"{family.package}.vision") is VISION[family.name]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_text_loads_no_torch(family: Family) -> None:
    code = f"import sys, {family.package}.text; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
