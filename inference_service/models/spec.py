"""What a checkpoint is, read from its configuration files; torch-free, so that the front can read it too.

Owns the choice of the family that reads a directory. Must not know how a family reads, torch, tensors or requests.
"""

from __future__ import annotations

from pathlib import Path

from inference_service.models.config_file import SpecError, read_config
from inference_service.models.description import (
    DecoderSpec,
    ImagePolicy,
    ModelSpec,
    RopeSpec,
    VideoPolicy,
)
from inference_service.models.registry import FAMILIES, REFUSALS


__all__ = [
    "DecoderSpec",
    "ImagePolicy",
    "ModelSpec",
    "RopeSpec",
    "SpecError",
    "VideoPolicy",
    "load_spec",
]


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
