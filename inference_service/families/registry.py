"""The registry of supported families, and the function that reads a checkpoint's specification. Torch-free."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from inference_service.families.config_file import Section, SpecError, read_config
from inference_service.families.copied_files import refuse_adapter
from inference_service.families.family import Family
from inference_service.families.weight_files import stored_headers
from inference_service.model_spec import ModelSpec


FOLDERS = (
    "qwen_vl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "glm_4v",
)
"""The folders of the families beside this module; the `FAMILY` of each is registered."""

FAMILIES: dict[str, Family] = {}
"""The registered families by name; filled by `register`."""


def register(family: Family) -> None:
    """Adds a family.

    Raises:
        ValueError: Its name or its model_type is registered already.
    """
    for other in FAMILIES.values():
        if family.name == other.name or family.model_type == other.model_type:
            raise ValueError(
                f"family {family.name!r} (model_type {family.model_type!r}) cannot be registered:"
                f" {other.name!r} (model_type {other.model_type!r}) is registered already"
            )
    FAMILIES[family.name] = family


for _folder in FOLDERS:
    register(import_module(f"{__package__}.{_folder}").FAMILY)


def family_of(spec: ModelSpec) -> Family:
    """The family of a model."""
    return FAMILIES[spec.family]


def is_native(model_dir: Path) -> bool:
    """Whether the model in a directory is of a registered family, or config.json does not tell what it is."""
    try:
        model_type = read_config(model_dir / "config.json").values.get("model_type")
    except SpecError:
        return True  # `load_spec` says what is wrong
    return not isinstance(model_type, str) or any(
        family.model_type == model_type for family in FAMILIES.values()
    )


def load_spec(model_dir: Path) -> ModelSpec:
    """Reads the specification of the checkpoint in a directory.

    Raises:
        SpecError: A file is missing or invalid, or the family or a setting is not supported.
    """
    refuse_adapter(model_dir)
    config = read_config(model_dir / "config.json")
    model_type = config.text("model_type")
    family = next((f for f in FAMILIES.values() if f.model_type == model_type), None)
    if family is None:
        refused = {k: why for f in FAMILIES.values() for k, why in f.refused_relatives.items()}
        why = refused.get(model_type, f"model_type {model_type!r} is not supported")
        supported = ", ".join(sorted(f.model_type for f in FAMILIES.values()))
        raise SpecError(f"config.json: {why}; supported: {supported}")
    _refuse_quantised(model_dir, config)
    return family.read(model_dir, config)


def _refuse_quantised(model_dir: Path, config: Section) -> None:
    """Raises for quantised weights; fine-tuners also leave the setting beside weights that are merged and plain."""
    if "quantization_config" not in config:
        return
    stored = stored_headers(model_dir)
    if stored and all(tensor.is_plain for tensor in stored.values()):
        return
    settings = config.section("quantization_config")
    method = settings.values.get("quant_method") or "unknown"
    raise SpecError(
        f"{settings.where}: the checkpoint is quantised (quant_method {method}); quantised checkpoints are not"
        " supported: serve the model in bfloat16 or float16 from which it was made"
    )
