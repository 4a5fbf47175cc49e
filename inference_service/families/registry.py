"""The families of models that can be served, and which of them reads a checkpoint. Torch-free."""

from __future__ import annotations

from pathlib import Path

from inference_service.families.config_file import SpecError, read_config
from inference_service.families.glm_4v import spec as glm_4v
from inference_service.families.qwen2_5_vl import spec as qwen2_5_vl
from inference_service.families.qwen2_vl import spec as qwen2_vl
from inference_service.families.qwen3_vl import spec as qwen3_vl
from inference_service.families.qwen_vl import spec as qwen_vl
from inference_service.model_spec import ModelSpec


FAMILIES = {
    family.name: family
    for family in (
        qwen_vl.FAMILY,
        qwen2_vl.FAMILY,
        qwen2_5_vl.FAMILY,
        qwen3_vl.FAMILY,
        glm_4v.FAMILY,
    )
}
"""By name."""

REFUSALS = {
    "qwen3_vl_moe": "Qwen3-VL with a mixture of experts is not supported, only the dense models are",
}
"""Why relatives of the supported families are refused, by `model_type`."""


def load_spec(model_dir: Path) -> ModelSpec:
    """Reads what the checkpoint in a directory is.

    Raises:
        SpecError: A file is missing or broken, the model's family is not supported, or a setting is not.
    """
    config = read_config(model_dir / "config.json")
    model_type = config.text("model_type")
    family = next((f for f in FAMILIES.values() if f.model_type == model_type), None)
    if family is None:
        why = REFUSALS.get(model_type, f"model_type {model_type!r} is not supported")
        supported = ", ".join(sorted(f.model_type for f in FAMILIES.values()))
        raise SpecError(f"config.json: {why}; supported: {supported}")
    if "quantization_config" in config:
        raise SpecError("config.json: quantised checkpoints are not supported")
    return family.read(model_dir, config)
